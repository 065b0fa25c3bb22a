"""Robots' recordings in the LeRobotDataset v3 layout: one camera, states and actions, the task.

Every episode is cut into windows of whole frames. A frame and the vectors of its line stand at the
same time: the frame first, then state, then action, so that an action is predicted from the frame
in which it was taken, and the next frame from the action.

Shapes: T frames or vectors, D values of a vector.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, groupby
from pathlib import Path

import torch
from torch import Tensor

from datamodules.base import ClipDataModule, Split
from datamodules.feed.documents import ClipDocuments, Documents, Skipped
from datamodules.feed.loading import Loading
from datamodules.feed.split import split_by_hash
from datamodules.files.headers import content_hash
from datamodules.files.lerobot_folder import Episode, LeRobotFolder, Rows, within_films
from datamodules.files.window_documents import RUN_BYTES
from mmpredict.media import Limits, MediaError, read_windows
from mmpredict.media.cutting import SHORTEST_WINDOW_S
from mmpredict.schema import Batch, Clip, Series, TextPiece
from mmpredict.tokens import Patches, TextTokens, Vectors

USUAL_SERIES = ("observation.state", "action")
MANY_EPISODES = Limits(max_duration_s=24 * 3600.0, max_frames=10_000_000)  # share a file
RUN_S = 60.0  # neighbouring windows that one pass over a file reads


class LeRobot(ClipDataModule):
    """A LeRobotDataset v3 on disk; needs `pip install "mmpredict[parquet]"`.

    Episodes are split by a hash of their number, so that from 30 on none that trained is held out
    when more are recorded.

    Args:
        root: folder of the dataset, that which holds meta/.
        video, text: encoders; null leaves the stream out. The text is the task, without a time,
            before all else.
        camera: which camera is seen, such as observation.images.top; null takes the first.
        series: features that are vectors, in the order in which they stand beside a frame; null
            takes observation.state and action, if they are there. As streams they are named without
            "observation." and with _ for dots: state, action.
        hz: vectors per second; null takes all that were recorded.
        clip_seconds: length of a document, rounded to whole frames of the dataset; an episode is
            cut into as many as it holds, a remainder below 0.25 s is left out.
        held_out_share: expected share of the episodes for validation, and as much for testing.
        limits: what an mp4 file may cost.
        loading: how documents become batches.
        seed: of the order of the training documents.
    """

    def __init__(  # noqa: PLR0913 - the knobs of a recipe
        self,
        root: str,
        video: Patches | None = Patches(),
        text: TextTokens | None = TextTokens(),
        *,
        camera: str | None = None,
        series: Sequence[str] | None = None,
        hz: float | None = None,
        clip_seconds: float = 2.0,
        held_out_share: float = 0.1,
        limits: Limits = MANY_EPISODES,
        loading: Loading | None = None,
        seed: int = 0,
    ) -> None:
        self._folder = LeRobotFolder(Path(root).expanduser())
        self._streams = _streams(self._folder, series)
        hz = self._folder.fps if hz is None else hz
        vectors = {
            stream: Vectors(self._folder.vectors[name], hz, modality)
            for modality, (stream, name) in enumerate(self._streams.items(), start=3)
        }
        super().__init__(
            audio=None, video=video, text=text, series=vectors, loading=loading, seed=seed
        )
        if not 0 < clip_seconds < math.inf or not 0 < held_out_share < 0.5:
            raise ValueError(
                f"data.clip_seconds={clip_seconds:g} must be above 0, and "
                f"data.held_out_share={held_out_share:g} between 0 and 0.5"
            )
        self.root, self.limits = self._folder.root, limits
        self.clip_seconds, self.held_out_share = clip_seconds, held_out_share
        self._notices: list[str] = []
        self.camera = self._camera(camera)
        self.window_frames = max(1, round(clip_seconds * self._folder.fps))
        self._episodes: dict[Split, list[Episode]] | None = None
        self._tasks: dict[int, str] = {}

    def _camera(self, camera: str | None) -> str | None:
        """The camera that is seen."""
        cameras = self._folder.cameras
        if self.codecs.video is None:
            if camera is not None:
                raise ValueError(f"data.camera={camera} is given and data.video is null")
            return None
        if camera is None and not cameras:
            raise ValueError(f"{self.root} has no video; set data.video to null")
        chosen = cameras[0] if camera is None else camera
        self._folder.check_camera(chosen)
        if camera is None and len(cameras) > 1:
            self._notices.append(
                f"{chosen} is seen; there are also {', '.join(cameras[1:])} (data.camera)"
            )
        return chosen

    @property
    def recorded_fps(self) -> float:
        return self._folder.fps

    @property
    def window_s(self) -> float:
        return self.window_frames / self._folder.fps

    def setup(self, stage: str | None = None) -> None:
        """Read the list of episodes, and the header of every mp4 file, once."""
        self.check_context(self.window_s)
        if self._episodes is None:
            for notice in self._notices:
                print(f"note: {notice}")
            self._tasks = self._folder.tasks() if self.codecs.text is not None else {}
            episodes, broken = self._folder.episodes(self.camera)
            self.skip_log.num_sources = len(episodes) + len(broken)
            if self.codecs.video is not None:
                episodes, short = within_films(self._folder, episodes, self.limits)
                broken += short
            for skipped in broken:
                self.skip_log.note(skipped)
            self.skip_log.check()
            self._episodes = self._split(episodes)
        super().setup(stage)

    def _split(self, episodes: list[Episode]) -> dict[Split, list[Episode]]:
        if len(episodes) < 3:
            raise ValueError(
                f"{self.root} has {len(episodes)} usable episodes; it takes three or more, to hold "
                "one out for validation and one for testing"
            )
        hashes = [hashlib.sha256(e.name.encode()).hexdigest() for e in episodes]
        split: dict[Split, list[Episode]] = {"train": [], "val": [], "test": []}
        names = split_by_hash(hashes, self.held_out_share)
        for name, episode in zip(names, episodes, strict=True):
            split[name].append(episode)
        return split

    def fingerprint(self) -> dict[str, str]:
        """Every file that is read, by its path in the dataset."""
        episodes = [e for part in (self._episodes or {}).values() for e in part]
        files = {name for e in episodes for name in (e.data, e.video) if name}
        files |= {str(p.relative_to(self.root)) for p in self.root.glob("meta/**/*.parquet")}
        return {name: content_hash(self.root / name) for name in [*files, "meta/info.json"]}

    def documents(self, split: Split) -> Documents:
        if self._episodes is None:
            raise RuntimeError("call setup() first")
        return _Windows(self, self._episodes[split])

    def corpus(self) -> Iterable[str]:
        assert self._episodes is not None
        for episode in self._episodes["train"]:
            yield from episode.tasks or self._tasks.values()

    def clips(self, episode: Episode, numbers: Sequence[int]) -> dict[int, Clip | MediaError]:
        """Some windows of an episode; neighbours from one pass over its mp4 file."""
        try:
            rows = self._folder.rows(episode, self._streams.values())
            self._check_tasks(episode, rows)
        except MediaError as error:
            return dict.fromkeys(numbers, error)
        found: dict[int, Clip | MediaError] = {}
        for group in self._passes(episode, sorted(set(numbers))):
            seen = self._seen(episode, group[0], group[-1] - group[0] + 1)
            for number in group:
                clip = seen[number - group[0]]
                if not isinstance(clip, MediaError):
                    clip = self._complete(clip, rows, episode, number)
                found[number] = clip
        return found

    def _check_tasks(self, episode: Episode, rows: Rows) -> None:
        unknown = set(rows.task_T.tolist()) - self._tasks.keys()
        if unknown and self.codecs.text is not None:
            reason = f"has task {min(unknown)}, which meta/tasks.parquet does not know"
            raise MediaError(f"{self.root / episode.data} {episode.name}", reason)

    def _passes(self, episode: Episode, numbers: Sequence[int]) -> Iterator[list[int]]:
        """Rising numbers of windows; neighbours together, but a shorter last one by itself."""
        whole = episode.length // self.window_frames
        for _, group in groupby(enumerate(numbers), lambda x: x[1] - x[0] if x[1] < whole else -1):
            yield [number for _, number in group]

    def span(self, episode: Episode, number: int) -> range:
        """The frames of a window."""
        first = number * self.window_frames
        return range(first, min(first + self.window_frames, episode.length))

    def num_windows(self, episode: Episode) -> int:
        """Windows of full length, and a rest that is worth one. There is always one."""
        whole, rest = divmod(episode.length, self.window_frames)
        return whole + (rest / self._folder.fps >= SHORTEST_WINDOW_S or not whole)

    def _seen(self, episode: Episode, first: int, count: int) -> list[Clip | MediaError]:
        """The frames of neighbouring windows of one length.

        The file is asked in the middle of a frame's time: the stamps in an mp4 and the starts that
        the dataset gives may each be off by a fraction of a frame. At each of the model's times
        stands the last frame that was recorded by then.
        """
        video, fps = self.codecs.video, self._folder.fps
        if video is None:
            return [Clip()] * count
        span = self.span(episode, first)
        times_s = torch.arange(math.ceil(len(span) / fps * video.fps - 1e-6)).double() / video.fps
        kept = (times_s * fps + 1e-6).long()
        every = round(fps / video.fps)
        sparse = every >= 1 and bool((kept == every * torch.arange(len(kept))).all())
        clips = read_windows(
            self.root / episode.video,
            episode.start_s + (span.start + 0.5) / fps,
            len(span) / fps,
            count,
            fps=fps / every if sparse else fps,
            size=video.height_width,
            sound=False,
            limits=self.limits,
        )
        for n, clip in enumerate(clips):
            if isinstance(clip, MediaError):
                continue
            frames_TCHW, expected = clip.frames_TCHW, len(kept) if sparse else len(span)
            if frames_TCHW is None or len(frames_TCHW) != expected:
                got = 0 if frames_TCHW is None else len(frames_TCHW)
                reason = f"has {got} of {expected} frames of {episode.name}"
                clips[n] = MediaError(self.root / episode.video, reason)
            else:
                frames_TCHW = frames_TCHW if sparse else frames_TCHW[kept]
                clips[n] = replace(clip, frames_TCHW=frames_TCHW, times_s=times_s)
        return clips

    def _complete(self, clip: Clip, rows: Rows, episode: Episode, number: int) -> Clip:
        """A window with its vectors and its task."""
        span, fps = self.span(episode, number), self._folder.fps
        here = slice(span.start, span.stop)
        times_s = torch.arange(len(span)).double() / fps
        series = {
            stream: Series(rows.vectors[name][here], times_s)
            for stream, name in self._streams.items()
        }
        name = f"{self.root.name} {self.name(episode, number)}"
        texts = self._said(rows.task_T[here], times_s) if self.codecs.text is not None else ()
        return replace(clip, series=series, texts=texts, name=name)

    def _said(self, task_T: Tensor, times_s: Tensor) -> tuple[TextPiece, ...]:
        """The task at the start, untimed; where it changes, the new one at that time."""
        changes = [0, *((task_T.diff() != 0).nonzero()[:, 0] + 1).tolist()]
        texts = []
        for frame in changes:
            text = self._tasks[int(task_T[frame])].strip()
            at_s = float(times_s[frame]) if frame else None
            texts += [TextPiece(text, at_s, at_s)] if text else []
        return tuple(texts)

    def name(self, episode: Episode, number: int) -> str:
        """What a person calls a window."""
        span, fps = self.span(episode, number), self._folder.fps
        return f"{episode.name} {span.start / fps:g}-{span.stop / fps:g} s"


class _Windows(ClipDocuments):
    def __init__(self, module: LeRobot, episodes: list[Episode]) -> None:
        super().__init__(module)
        self.module: LeRobot = module
        self.episodes = episodes
        self._ends = list(accumulate(map(module.num_windows, episodes)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def find(self, index: int) -> tuple[Episode, int]:
        """The episode of a document, and the number of its window there."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        place = bisect_right(self._ends, index)
        return self.episodes[place], index - (self._ends[place - 1] if place else 0)

    def name(self, index: int) -> str:
        return f"{self.module.root} {self.module.name(*self.find(index))}"

    def runs(self) -> Sequence[range] | None:
        video, most = self.module.codecs.video, int(RUN_S / self.module.window_s)
        if video is not None:
            height, width = video.height_width
            rate = max(video.fps, self.module.recorded_fps)
            frames_bytes = 3 * height * width * rate * self.module.window_s
            most = min(most, int(RUN_BYTES / frames_bytes))
        step, begin, found = max(1, most), 0, []
        for end in self._ends:
            found += [range(k, min(k + step, end)) for k in range(begin, end, step)]
            begin = end
        return found if len(found) < len(self) else None

    def document(self, epoch: int, index: int) -> Batch | Skipped:
        return self.read(epoch, [index])[0]

    def read(self, epoch: int, indices: Sequence[int]) -> list[Batch | Skipped]:
        return [self._encoded(index, clip) for index, clip in self._clips(indices)]

    def clip(self, epoch: int, index: int) -> Clip | Skipped:
        return self._clips([index])[0][1]

    def _clips(self, indices: Sequence[int]) -> list[tuple[int, Clip | Skipped]]:
        found: dict[int, Clip | Skipped] = {}
        for place, group in groupby(sorted(set(indices)), lambda i: bisect_right(self._ends, i)):
            episode = self.episodes[place]
            numbers = {self.find(index)[1]: index for index in group}
            for number, clip in self.module.clips(episode, list(numbers)).items():
                if isinstance(clip, MediaError):
                    clip = Skipped(f"{self.module.root} {episode.name}", str(clip))
                found[numbers[number]] = clip
        return [(index, found[index]) for index in indices]

    def _encoded(self, index: int, clip: Clip | Skipped) -> Batch | Skipped:
        if isinstance(clip, Skipped):
            return clip
        row = self.module.encode(clip)
        reason = "has no stream that the recipe uses"
        return Skipped(self.name(index), reason, kind="empty") if row is None else row


def _streams(folder: LeRobotFolder, series: Sequence[str] | None) -> dict[str, str]:
    """The feature behind each stream, by the stream's name."""
    have = folder.vectors
    if series is None:
        series = [name for name in USUAL_SERIES if name in have]
    streams: dict[str, str] = {}
    for name in series:
        if name not in have:
            raise ValueError(
                f"data.series names {name}, which is no vector of numbers in {folder.root}; it has "
                f"{', '.join(have) or 'none'}"
            )
        stream = name.removeprefix("observation.").replace(".", "_")
        if streams.setdefault(stream, name) != name:
            raise ValueError(
                f"data.series: {streams[stream]} and {name} would both be the stream {stream}; "
                "leave one of them out"
            )
    return streams
