"""LeRobotDataset v3 folders as LeRobot writes them: many episodes to an mp4 and to a parquet file.

Every frame says in black and white squares which episode and which frame it is; camera b shows the
negative of camera a. Action and state say it too: action = (episode, frame, -frame), state =
(1000 * episode + frame, 0.5).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

FPS, SIZE, SQUARE = 10, 32, 8
CAMERAS = ("observation.images.a", "observation.images.b")
OPTIONS = {"libx264": {"bf": "2"}, "libsvtav1": {"preset": "12"}}
TASKS = ("push the cube", "lift the cup")


def picture(episode: int, frame: int) -> np.ndarray:
    """(H, W, 3): 16 squares, bit by bit 6 of the episode's number and 10 of the frame's."""
    bits = (episode << 10) + frame
    squares = np.array([(bits >> n) & 1 for n in range(16)], dtype=np.uint8).reshape(4, 4)
    return np.kron(squares, np.full((SQUARE, SQUARE), 255, np.uint8))[..., None].repeat(3, axis=2)


def read_counter(frames_TCHW: Tensor) -> list[tuple[int, int]]:
    """(episode, frame) of each frame of camera a, of any size that is a multiple of 4."""
    cell = frames_TCHW.shape[-1] // 4
    means = frames_TCHW.float().mean(1).unfold(1, cell, cell).unfold(2, cell, cell).mean((-1, -2))
    bits = (means.flatten(1) > 127).long() @ (2 ** torch.arange(16))
    return [(int(b) >> 10, int(b) & 1023) for b in bits]


@dataclass
class Dataset:
    """What is to be written; the defaults are an ordinary dataset of two files of each kind.

    Args:
        lengths: frames of each episode.
        files: how many of them stand in one file of data and of video each.
        fps: frames per second.
        cameras: names of the mp4 features.
        info: entries of info.json that are to be other than they are.
        drift_s: by how much the starts that meta/episodes gives are off, per episode.
        codec: of the mp4 files.
        gap_s: seconds between the episodes of an mp4 file in which nothing new is shown.
        film_fps: frames per second of the mp4 files, as long as they should be; 0 for `fps`.
    """

    lengths: Sequence[int] = (23, 30, 17, 26, 20)
    files: Sequence[int] = (3, 2)
    fps: int = FPS
    cameras: Sequence[str] = CAMERAS
    info: dict[str, Any] = field(default_factory=dict)
    drift_s: float = 0.0
    codec: str = "libx264"
    gap_s: float = 0.0
    film_fps: int = 0

    def write(self, root: Path) -> Path:
        """Write it all below `root`; chunks hold one file each, so that both numbers count."""
        episodes = [self._entry(root, *place) for place in self._places()]
        self._write_meta(root, episodes)
        return root

    def _places(self) -> list[tuple[int, int, list[int]]]:
        """(chunk, file, episodes): files 0 and 1 of chunk 0, the next one in chunk 1, ..."""
        numbers, places = iter(range(len(self.lengths))), []
        for n, count in enumerate(self.files):
            places.append((n // 2, n % 2, [next(numbers) for _ in range(count)]))
        return places

    def _entry(self, root: Path, chunk: int, file: int, numbers: list[int]) -> dict[str, list]:
        name = f"chunk-{chunk:03d}/file-{file:03d}"
        lengths = [self.lengths[n] for n in numbers]
        before = sum(self.lengths[: numbers[0]])
        _write_rows(root / "data" / f"{name}.parquet", numbers, lengths, before, self.fps)
        ends = np.cumsum(lengths)
        entry: dict[str, list] = {
            "episode_index": numbers,
            "tasks": [[TASKS[n % 2]] for n in numbers],
            "length": lengths,
            "data/chunk_index": [chunk] * len(numbers),
            "data/file_index": [file] * len(numbers),
            "dataset_from_index": (before + ends - lengths).tolist(),
            "dataset_to_index": (before + ends).tolist(),
            "stats/action/mean": [[0.0, 0.0, 0.0]] * len(numbers),
            "meta/episodes/chunk_index": [0] * len(numbers),
            "meta/episodes/file_index": [0] * len(numbers),
        }
        for camera in self.cameras:
            negative = camera != self.cameras[0]
            path = root / "videos" / camera / f"{name}.mp4"
            starts_s = self._write_film(path, numbers, negative=negative)
            key = f"videos/{camera}"
            entry[f"{key}/chunk_index"] = [chunk] * len(numbers)
            entry[f"{key}/file_index"] = [file] * len(numbers)
            entry[f"{key}/from_timestamp"] = starts_s
            stops = zip(starts_s, lengths, strict=True)
            entry[f"{key}/to_timestamp"] = [start + count / self.fps for start, count in stops]
        return entry

    def _write_film(self, path: Path, numbers: list[int], *, negative: bool) -> list[float]:
        """Encode each episode by itself and lay the packets end to end, as LeRobot does."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unit = Fraction(1, 12800)
        starts_s, begin, dts = [], 0, -(1 << 40)
        with av.open(str(path), "w") as film:
            track = None
            for k, number in enumerate(numbers):
                part = path.with_name(f"part-{number}.mp4")
                self._write_episode(part, number, negative=negative)
                with av.open(str(part)) as source:
                    video = source.streams.video[0]
                    track = track or film.add_stream_from_template(video, opaque=True)
                    track.time_base = unit
                    for packet in source.demux(video):
                        if packet.dts is None:
                            continue
                        scale = packet.time_base / unit
                        packet.pts = begin + int(packet.pts * scale)
                        packet.dts = max(dts + 1, begin + int(packet.dts * scale))
                        packet.duration = int((packet.duration or 0) * scale)
                        packet.time_base, packet.stream, dts = unit, track, packet.dts
                        film.mux(packet)
                part.unlink()
                starts_s.append(float(begin * unit) + k * self.drift_s)
                begin += int((Fraction(self.lengths[number], self.fps) + self.gap()) / unit)
        return starts_s

    def gap(self) -> Fraction:
        return Fraction(self.gap_s).limit_denominator(10_000)

    def _write_episode(self, path: Path, number: int, *, negative: bool) -> None:
        with av.open(str(path), "w") as container:
            fps = self.film_fps or self.fps
            stream = container.add_stream(self.codec, rate=fps)
            stream.width = stream.height = SIZE if self.codec == "libx264" else 2 * SIZE
            stream.pix_fmt, stream.options = (
                "yuv420p",
                {"g": "5", "crf": "10", **OPTIONS[self.codec]},
            )
            for frame in range(self.lengths[number] * fps // self.fps):
                image = picture(number, frame)
                image = 255 - image if negative else image
                image = image.repeat(stream.width // SIZE, 0).repeat(stream.width // SIZE, 1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
            container.mux(stream.encode(None))

    def _write_meta(self, root: Path, entries: list[dict[str, list]]) -> None:
        folder = root / "meta" / "episodes" / "chunk-000"
        folder.mkdir(parents=True)
        for n, entry in enumerate(entries):
            pq.write_table(pa.table(entry), folder / f"file-{n:03d}.parquet")
        tasks = pa.table({"task_index": [0, 1], "__index_level_0__": list(TASKS)})
        pq.write_table(tasks, root / "meta" / "tasks.parquet")
        features = {
            "observation.state": {"dtype": "float32", "shape": [2], "names": ["place", "still"]},
            "action": {"dtype": "float32", "shape": [3], "names": None},
            "next.done": {"dtype": "bool", "shape": [1], "names": None},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
            "frame_index": {"dtype": "int64", "shape": [1], "names": None},
            "episode_index": {"dtype": "int64", "shape": [1], "names": None},
            "index": {"dtype": "int64", "shape": [1], "names": None},
            "task_index": {"dtype": "int64", "shape": [1], "names": None},
        }
        film = {"video.fps": self.fps, "video.codec": "h264", "has_audio": False}
        for camera in self.cameras:
            shape = [SIZE, SIZE, 3]
            features[camera] = {"dtype": "video", "shape": shape, "names": None, "info": film}
        info = {
            "codebase_version": "v3.0",
            "robot_type": "none",
            "total_episodes": len(self.lengths),
            "total_frames": sum(self.lengths),
            "total_tasks": len(TASKS),
            "chunks_size": 2,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": self.fps,
            "splits": {"train": f"0:{len(self.lengths)}"},
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
            "features": features,
        }
        (root / "meta" / "info.json").write_text(json.dumps({**info, **self.info}))


def _write_rows(path: Path, numbers: list[int], lengths: list[int], before: int, fps: int) -> None:
    """One row group per episode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    three = pa.list_(pa.float32(), 3)
    schema = pa.schema(
        [("action", three), ("observation.state", pa.list_(pa.float32()))]
        + [("next.done", pa.bool_()), ("timestamp", pa.float32())]
        + [(n, pa.int64()) for n in ("frame_index", "episode_index", "index", "task_index")]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for number, length in zip(numbers, lengths, strict=True):
            frames = range(length)
            columns = {
                "action": [[float(number), float(t), -float(t)] for t in frames],
                "observation.state": [[1000.0 * number + t, 0.5] for t in frames],
                "next.done": [t == length - 1 for t in frames],
                "timestamp": [t / fps for t in frames],
                "frame_index": list(frames),
                "episode_index": [number] * length,
                "index": [before + t for t in frames],
                "task_index": [number % 2] * length,
            }
            writer.write_table(pa.table(columns, schema=schema))
            before += length
