"""A plain folder of videos, sounds, images and texts. In: files. Out: windows as documents.

Any of a file's streams may be missing. A text file with the same stem (.srt, .vtt, .json, .jsonl,
.txt), or else a subtitle track inside the file, becomes text in time; text without times is spread
over its file by the length of its words.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from pathlib import Path

from datamodules.base import ClipDataModule, Loading, Split
from datamodules.feed.documents import Documents
from datamodules.feed.split import split_by_kind
from datamodules.files.finding import Found, Wanted, find
from datamodules.files.recordings import Source, TextFile, hold_out_last
from datamodules.files.window_documents import WindowDocuments
from mmpredict.media import Limits, MediaError
from mmpredict.media.cutting import SHORTEST_WINDOW_S
from mmpredict.tokens import MelChunks, Patches, TextTokens

SHOWN = 5  # names of files that are left out


class AudioVisual(ClipDataModule):
    """Videos with sound, sounds alone, silent videos, images, texts: every file below a folder.

    Files are split by a hash of their content, each kind of file by itself (see `split_by_kind`):
    neither a new name nor a copy changes a file's split. With fewer than three different files,
    each file's last windows are held out; a file of one window, or the last of two, then stands in
    more than one split.

    An image is a clip of one frame; the text beside it has no times. A text that stands beside no
    media file (.txt, .jsonl, .srt, .vtt) is cut into documents of text alone, of up to
    `loading.context_length` bytes. What has no stream of the recipe is left out.

    Args:
        root: folder (searched with its subfolders), one file, or a manifest: a .jsonl file whose
            rows name a "path", and may give "start" and "end", captions and a weight.
        audio, video, text: encoders; null leaves the stream out.
        clip_seconds: length of a document; a file is cut into as many as it holds.
        random_start: in training the windows of a file begin elsewhere in every epoch. They still
            tile the file, after a first one that is shorter.
        plain_texts: whether texts beside no media file are documents.
        run_seconds: neighbouring windows of a file that are decoded in one go, and then mixed with
            others (see `loading.shuffle_runs`). Longer runs decode faster, shorter ones mix better.
        held_out_share: expected share of the files for validation, and as much again for testing.
        limits: what a file may cost; larger ones are skipped by name.
        loading: how documents become batches.
        seed: of the order of the training documents, and of `random_start`.
    """

    def __init__(  # noqa: PLR0913 - the knobs of a recipe
        self,
        root: str,
        audio: MelChunks | None = MelChunks(),
        video: Patches | None = Patches(),
        text: TextTokens | None = TextTokens(),
        *,
        clip_seconds: float = 2.0,
        random_start: bool = False,
        plain_texts: bool = True,
        run_seconds: float = 64.0,
        held_out_share: float = 0.1,
        limits: Limits = Limits(),
        loading: Loading | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(audio=audio, video=video, text=text, loading=loading, seed=seed)
        if not SHORTEST_WINDOW_S <= clip_seconds < math.inf or not 0 < held_out_share < 0.5:
            raise ValueError(
                f"data.clip_seconds={clip_seconds:g} must be at least {SHORTEST_WINDOW_S}, and "
                f"data.held_out_share={held_out_share:g} between 0 and 0.5"
            )
        if not 0 <= run_seconds < math.inf:
            raise ValueError(f"data.run_seconds={run_seconds:g} must be 0 or more")
        self.root, self.clip_seconds = Path(root).expanduser(), clip_seconds
        self.random_start, self.plain_texts = random_start, plain_texts
        self.run_seconds = run_seconds
        self.held_out_share, self.limits = held_out_share, limits
        self._sources: dict[Split, list[Source]] | None = None
        self._digests: dict[str, str] = {}

    @property
    def wanted(self) -> Wanted:
        """What the recipe can use of a file."""
        codecs = self.codecs
        has_text = codecs.text is not None
        return Wanted(
            video=codecs.video is not None,
            audio=codecs.audio is not None,
            text=has_text,
            clip_seconds=self.clip_seconds,
            passage_bytes=self.loading.context_length - 1 if has_text and self.plain_texts else 0,
            limits=self.limits,
        )

    def setup(self, stage: str | None = None) -> None:
        """Look at every file's header, once."""
        self.check_context(self.clip_seconds)
        if self._sources is None:
            show = self._place()[0] == 0
            found = find(self.root, self.wanted, show=show)
            self.skip_log.num_sources = found.num_files
            for skipped in found.skipped:
                self.skip_log.note(skipped)
            self.skip_log.check()
            if found.unused and show:
                names = [str(path) for path in sorted(found.unused)]
                print(_unused(names), file=sys.stderr)
            if not found.sources:
                raise ValueError(
                    f"data.root={self.root} holds nothing with a stream of the recipe "
                    f"({', '.join(spec.name for spec in self.layout.streams)}); give the folder "
                    "that holds your files, or a recipe with their streams"
                )
            folder = self.root if self.root.is_dir() else self.root.parent
            self._digests = {
                (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix(): d
                for path, d in sorted(found.digests.items())
            }
            self._sources = self._split(found)
        super().setup(stage)

    def _split(self, found: Found) -> dict[Split, list[Source]]:
        hashes = [found.digests[source.path] for source in found.sources]
        if len(set(hashes)) < 3:
            return hold_out_last(found.sources, self.held_out_share)
        split: dict[Split, list[Source]] = {"train": [], "val": [], "test": []}
        kinds = [self.wanted.kind(source) for source in found.sources]
        names = split_by_kind(kinds, hashes, self.held_out_share)
        for name, source in zip(names, found.sources, strict=True):
            split[name].append(source)
        return split

    def fingerprint(self) -> dict[str, str]:
        """The hash of the content of every file in use, texts included, by its path below the
        root."""
        return self._digests

    def documents(self, split: Split) -> Documents:
        if self._sources is None:
            raise RuntimeError("call setup() first")
        return WindowDocuments(self, self._sources[split], self.random_start and split == "train")

    def corpus(self) -> Iterable[str]:
        assert self._sources is not None
        for source in self._sources["train"]:
            try:
                if isinstance(source, TextFile):
                    yield from source.passages()
                    continue
                pieces = source.pieces()
            except MediaError:
                continue  # its documents will be skipped by name
            for window in source.cut if pieces else ():
                said = pieces if source.is_image else window.said(pieces)
                yield from (piece.text for piece in said)


def _unused(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"left out, for they have no stream of the recipe: {len(names)} files ({shown})"
