"""What lies in a LeRobotDataset v3 folder. In: its meta/ and its parquet files. Out: Episodes, and
the vectors of one. Nothing here decodes a picture.

    meta/info.json                                  fps, features, templates of the paths
    meta/tasks.parquet                              task_index -> task
    meta/episodes/chunk-000/file-000.parquet        a line per episode: its files, its place there
    data/chunk-000/file-000.parquet                 a line per frame, many episodes to a file
    videos/CAMERA/chunk-000/file-000.mp4            many episodes to a file

Shapes: T frames of an episode, D values of a vector.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.feed.documents import Skipped
from mmpredict.media import Limits, MediaError, probe

CONVERT = "python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=OWNER/NAME"
FETCH = "hf download --repo-type dataset OWNER/NAME --local-dir FOLDER"
NUMBERS = re.compile(r"(float|u?int)\d+|bool")
# Templates come from strangers: these fields, with at most two digits of width, and nothing else.
FIELD = re.compile(r"\{(video_key|chunk_index|file_index)(:0?\d{1,2}d)?\}")
HALF_FRAME = 0.5
CLOSE_FPS = 0.02  # of the rate: headers round, and films may have gaps between episodes


@dataclass(frozen=True)
class Episode:
    """One recording.

    Args:
        index: its number in the dataset.
        length: frames, and vectors of each series.
        data: its parquet file, relative to the dataset.
        video: its mp4 file; "" where no camera is wanted.
        start_s: when its first frame is shown in that file.
        tasks: what was to be done, in no order.
    """

    index: int
    length: int
    data: str
    video: str = ""
    start_s: float = 0.0
    tasks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"episode {self.index}"


@dataclass(frozen=True)
class Rows:
    """The lines of an episode: vectors (T, D) by feature, and the task of each frame (T,)."""

    vectors: dict[str, Tensor]
    task_T: Tensor


class LeRobotFolder:
    """A dataset on disk.

    Args:
        root: the folder that holds meta/.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        info = self._info()
        self.fps = _positive(info, "fps", root)
        self.features: dict[str, dict[str, Any]] = info.get("features") or {}
        self.total_episodes = info.get("total_episodes")
        self._data_path = _template(info, "data_path", root)
        self._video_path = _template(info, "video_path", root) if self.cameras else ""

    def _info(self) -> dict[str, Any]:
        path = self.root / "meta" / "info.json"
        if not path.is_file():
            older = "" if self.root.exists() else " (the folder does not exist)"
            raise ValueError(
                f"data.root={self.root} has no meta/info.json{older}; give the folder of a "
                f"LeRobotDataset, fetched for example with: {FETCH}"
            )
        try:
            info = json.loads(path.read_text(encoding="utf-8"))
            version = str(info.get("codebase_version"))
            shapes = [about.get("shape") for about in info.get("features", {}).values()]
            if not all(isinstance(shape, list) for shape in shapes):
                raise ValueError("a feature without a shape")
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error}); fetch it again") from error
        if not re.match(r"v?3\.", version):
            number = re.match(r"v?(\d+)\.", version)
            remedy = "update mmpredict"
            if number is None or int(number[1]) < 3:
                remedy = f"convert it with LeRobot: {CONVERT}"
            raise ValueError(f"{path}: codebase_version is {version}, this reads v3; {remedy}")
        return info

    @property
    def cameras(self) -> list[str]:
        """Features that are mp4 files, those of depth last."""
        found = [name for name, about in self.features.items() if about.get("dtype") == "video"]
        return sorted(found, key=lambda name: _is_depth(self.features[name]))

    @property
    def vectors(self) -> dict[str, int]:
        """Width of each feature that is a vector of numbers for each frame."""
        own = {"timestamp", "frame_index", "episode_index", "index", "task_index"}
        return {
            name: int(about["shape"][0])
            for name, about in self.features.items()
            if name not in own
            and NUMBERS.fullmatch(str(about.get("dtype")))
            and len(about.get("shape") or ()) == 1
        }

    def check_camera(self, camera: str) -> None:
        """Raise ValueError where there is no such camera, or where it contradicts the dataset."""
        if camera not in self.cameras:
            stored = (self.features.get(camera) or {}).get("dtype")
            single = ""
            if stored == "image":
                single = " (its frames are single images; record or convert it with videos)"
            raise ValueError(
                f"data.camera={camera} is no video of {self.root}{single}; it has "
                f"{', '.join(self.cameras) or 'none'}"
            )
        about = self.features[camera]
        known = (about.get("info") or about.get("video_info") or {}).get("video.fps")
        if known is not None and abs(float(known) - self.fps) > CLOSE_FPS * self.fps:
            raise ValueError(
                f"{self.root}/meta/info.json contradicts itself: fps is {self.fps:g}, that of "
                f"{camera} is {float(known):g}"
            )

    def tasks(self) -> dict[int, str]:
        """Text of each task by its number."""
        path = self.root / "meta" / "tasks.parquet"
        table = self._metadata([path], ["task_index"])
        texts = [name for name in table.column_names if name != "task_index"]
        if not texts:
            raise ValueError(f"{path} has task_index alone, no column with the tasks' text")
        text = table.column("task" if "task" in texts else texts[0])
        numbers = table.column("task_index")
        return {int(n): str(t) for n, t in zip(numbers.to_pylist(), text.to_pylist(), strict=True)}

    def episodes(self, camera: str | None) -> tuple[list[Episode], list[Skipped]]:
        """All episodes in their order, but for those whose entries or files are not in order."""
        paths = sorted((self.root / "meta" / "episodes").glob("*/*.parquet"))
        names = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        if camera is not None:
            places = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
            names += [f"videos/{camera}/{name}" for name in places]
        first = self.root / "meta/episodes/chunk-000/file-000.parquet"
        table = self._metadata(paths or [first], names)
        columns = [table.column(name).to_pylist() for name in names]
        tasks = table.column("tasks").to_pylist() if "tasks" in table.column_names else None
        lines = sorted(zip(*columns, tasks or [()] * len(table), strict=True), key=lambda x: x[0])
        twice = next((a[0] for a, b in pairwise(lines) if a[0] == b[0]), None)
        if twice is not None:
            raise ValueError(
                f"{self.root}/meta/episodes lists episode {twice} twice; remove the stale one "
                f"of its files: {', '.join(path.name for path in paths)}"
            )
        if self.total_episodes is not None and len(lines) != self.total_episodes:
            raise ValueError(
                f"{self.root}: meta/episodes lists {len(lines)} episodes, meta/info.json says "
                f"{self.total_episodes}; fetch what is missing: {FETCH}"
            )
        found: list[Episode] = []
        broken: list[Skipped] = []
        for line in lines:
            made = self._episode(line, camera)
            (found if isinstance(made, Episode) else broken).append(made)  # type: ignore[arg-type]
        return _apart(self.root, found, broken, self.fps)

    def _episode(self, line: Sequence[Any], camera: str | None) -> Episode | Skipped:
        index, length, chunk, file = line[:4]
        source = f"{self.root} episode {index}"
        if None in line[:-1]:
            return Skipped(source, "its entry in meta/episodes has gaps")
        data = self._data_path.format(chunk_index=int(chunk), file_index=int(file))
        missing = [data] if not (self.root / data).is_file() else []
        video, start_s = "", 0.0
        if camera is not None:
            chunk, file, start_s, end_s = line[4:8]
            numbers = {"chunk_index": int(chunk), "file_index": int(file)}
            video = self._video_path.format(video_key=camera, **numbers)
            frames = (end_s - start_s) * self.fps
            if abs(frames - length) > HALF_FRAME:
                said = f"from {start_s:.3f} to {end_s:.3f} s of {video}, {frames:.1f} frames"
                return Skipped(source, f"has {length} frames and stands {said}")
            missing += [video] if not (self.root / video).is_file() else []
        if missing:
            return Skipped(source, f"{missing[0]} is missing; fetch it: {FETCH}")
        if length < 1:
            return Skipped(source, "has no frame", kind="empty")
        texts = tuple(str(text) for text in line[-1] or ())
        return Episode(int(index), int(length), data, video, float(start_s), texts)

    def rows(self, episode: Episode, features: Iterable[str]) -> Rows:
        """The vectors of an episode, checked; raises MediaError."""
        arrow = _arrow()
        path, features = self.root / episode.data, list(features)
        order = ["frame_index", "timestamp"]
        where = f"{path} {episode.name}"
        try:
            table = arrow.parquet.read_table(
                path,
                columns=[*order, "task_index", *features],
                filters=[("episode_index", "=", episode.index)],
                use_threads=False,  # the loader has processes of its own
                partitioning=None,
            )
            frame_T, time_T = (_numbers(table, name)[:, 0] for name in order)
            vectors = {name: _numbers(table, name) for name in features}
            task_T = _numbers(table, "task_index")[:, 0]
        except (OSError, ValueError, KeyError, arrow.ArrowException) as error:
            raise MediaError(where, f"cannot be read: {str(error).splitlines()[0]}") from error
        if len(frame_T) != episode.length:
            said = f"meta/episodes says {episode.length}"
            raise MediaError(where, f"has {len(frame_T)} frames, {said}")
        if not np.array_equal(frame_T, np.arange(episode.length)):
            raise MediaError(where, "its frame_index does not count 0, 1, 2, ...")
        late_T = np.abs(time_T * self.fps - frame_T)
        if late_T.max() > HALF_FRAME:
            frame = int(late_T.argmax())
            raise MediaError(
                where,
                f"its frame {frame} has the time {time_T[frame]:.3f} s, at {self.fps:g} frames a "
                f"second it is {frame / self.fps:.3f} s",
            )
        made = {name: torch.from_numpy(v.astype(np.float32)) for name, v in vectors.items()}
        for name, values_TD in made.items():
            if values_TD.shape[1] != self.vectors[name]:
                got = f"{values_TD.shape[1]} values, meta/info.json says {self.vectors[name]}"
                raise MediaError(where, f"{name} has {got}")
            if not bool(values_TD.isfinite().all()):
                frame = int((~values_TD.isfinite().all(dim=1)).nonzero()[0])
                raise MediaError(where, f"{name} of frame {frame} is not a finite number")
        return Rows(made, torch.from_numpy(task_T.astype(np.int64)))

    def _metadata(self, paths: list[Path], needed: Sequence[str]) -> Any:
        """All columns but the statistics of some files, one after the other."""
        arrow = _arrow()
        try:
            tables = []
            for path in paths:
                with arrow.parquet.ParquetFile(path) as file:
                    names = [n for n in file.schema_arrow.names if not n.startswith("stats/")]
                    lacking = [name for name in needed if name not in names]
                    if lacking:
                        raise ValueError(f"{path} has no column {lacking[0]}; fetch it again")
                    tables.append(file.read(columns=names))
        except FileNotFoundError:
            raise ValueError(f"{path} is missing; fetch the dataset's meta/: {FETCH}") from None
        except (OSError, arrow.ArrowException) as error:
            said = str(error).splitlines()[0]
            raise ValueError(f"{path} is damaged ({said}); fetch it again") from error
        return arrow.concat_tables(tables, promote_options="default")


def _apart(
    root: Path, found: list[Episode], broken: list[Skipped], fps: float
) -> tuple[list[Episode], list[Skipped]]:
    """Episodes that share no frame with the one before them in their mp4 file."""
    free_s: dict[str, tuple[float, int]] = {}
    overlapping: dict[int, Skipped] = {}
    for episode in sorted(found, key=lambda e: (e.video, e.start_s)):
        until_s, before = free_s.get(episode.video, (0.0, -1))
        if episode.video and episode.start_s < until_s - HALF_FRAME / fps:
            reason = (
                f"begins at {episode.start_s:.3f} s of {episode.video}, where episode {before} "
                f"goes on until {until_s:.3f} s"
            )
            overlapping[episode.index] = Skipped(f"{root} {episode.name}", reason)
        else:
            free_s[episode.video] = (episode.start_s + episode.length / fps, episode.index)
    kept = [episode for episode in found if episode.index not in overlapping]
    return kept, [*broken, *overlapping.values()]


def within_films(
    folder: LeRobotFolder, episodes: list[Episode], limits: Limits
) -> tuple[list[Episode], list[Skipped]]:
    """Episodes that lie within their mp4 files, by the headers of these."""
    frames: Counter[str] = Counter()
    for episode in episodes:
        frames[episode.video] += episode.length
    headers = {name: _header(folder, name, count, limits) for name, count in frames.items()}
    kept: list[Episode] = []
    broken: list[Skipped] = []
    for episode in episodes:
        ends_s = headers[episode.video]
        until_s = episode.start_s + episode.length / folder.fps
        if isinstance(ends_s, float) and until_s - HALF_FRAME / folder.fps <= ends_s:
            kept.append(episode)
            continue
        reason = ends_s
        if isinstance(ends_s, float):
            reason = f"ends at {until_s:.3f} s of {episode.video}, which ends at {ends_s:.3f} s"
        broken.append(Skipped(f"{folder.root} {episode.name}", str(reason)))
    return kept, broken


def _header(folder: LeRobotFolder, name: str, frames: int, limits: Limits) -> float | str:
    """When an mp4 file ends, in seconds; or in words why it is not that of its episodes."""
    try:
        info = probe(folder.root / name, limits)
    except MediaError as error:
        return str(error)
    if not info.has_video:
        return f"{name} has no video"
    if info.fps > (1 + CLOSE_FPS) * folder.fps:
        return f"{name} has {info.fps:g} frames a second, the dataset {folder.fps:g}"
    held = round(info.fps * info.duration_s)  # fewer a second than recorded: there may be gaps
    if info.fps and held < (1 - CLOSE_FPS) * frames - 1:
        return f"{name} holds about {held} frames, its episodes have {frames}"
    return info.duration_s or math.inf


def _arrow() -> Any:
    try:
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            'LeRobot datasets are parquet files; pip install "mmpredict[parquet]"'
        ) from error
    return pyarrow


def _numbers(table: Any, name: str) -> np.ndarray:
    """(T, D) float64 of a column of numbers or of lists of equally many."""
    arrow = _arrow()
    column = table.column(name).combine_chunks()
    count = len(column)
    if column.null_count:
        raise ValueError(f"{name} has gaps")
    if isinstance(column, arrow.ListArray | arrow.LargeListArray | arrow.FixedSizeListArray):
        if len(arrow.compute.unique(arrow.compute.list_value_length(column))) > 1:
            raise ValueError(f"{name} has vectors of unlike lengths")
        column = column.flatten()
        if column.null_count:
            raise ValueError(f"{name} has gaps")
    values = np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)
    return values.reshape(count, -1 if count else 1)


def _template(info: dict[str, Any], name: str, root: Path) -> str:
    """A template of paths that stay below the dataset's folder."""
    template = str(info.get(name) or "")
    bare = FIELD.sub("x", template)
    parts = bare.split("/")
    if not bare or "{" in bare or "}" in bare or "\\" in bare or ".." in parts or parts[0] == "":
        raise ValueError(f"{root}/meta/info.json: {name}={template!r} is no path inside the folder")
    return template


def _positive(info: dict[str, Any], name: str, root: Path) -> float:
    value = info.get(name)
    if not isinstance(value, int | float) or not 0 < value < 1e4:
        raise ValueError(f"{root}/meta/info.json: {name}={value!r} must be a number above 0")
    return float(value)


def _is_depth(feature: dict[str, Any]) -> bool:
    about = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    return bool(about.get("is_depth_map") or about.get("video.is_depth_map"))
