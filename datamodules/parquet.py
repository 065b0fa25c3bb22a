"""Tables of media, as Hugging Face has them. In: a folder of .parquet files. Out: documents.

A row holds one medium, either its bytes or a path below the folder, and text in other columns.
Needs pyarrow: pip install "mmpredict[parquet]".
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

from datamodules.base import Loading, Split
from datamodules.feed.documents import Documents, Skipped
from datamodules.files.headers import content_hash, look_at, skipped
from datamodules.files.parquet_columns import Asked, Columns, find_columns
from datamodules.files.stored import Look, Stored, StoredModule, Windows
from datamodules.files.window_documents import WindowDocuments
from mmpredict.media import Limits, MediaBytes, MediaError, MediaInfo, probe
from mmpredict.schema import TextPiece, UserError
from mmpredict.shards import list_addresses
from mmpredict.tokens import MelChunks, Patches, TextTokens

SUFFIXES = {"video": ".mp4", "audio": ".wav", "image": ".png"}  # of media without a path
KEPT_GROUPS = 2  # row groups that a process keeps in memory
ROWS_TOGETHER = 64  # neighbours of a row group that are read at one go
_SPLIT_NAME = re.compile(r"(?:^|[-_.])(train|validation|valid|val|dev|test)(?:[-_.]|$)")
_SPLITS = {"train": "train", "test": "test"}  # all others are "val"


class Parquet(StoredModule):
    """Rows of tables.

    A file is of the split that its name or its folder says (train, validation, val, dev, test);
    where none does, rows are held out by a hash of their file's name and their number.

    Which columns are read is found from the schema and printed. Of several columns with media one
    is read: a video, else a sound, else an image, but for one that is named.

    Args:
        root: folder (searched with its subfolders) or one file.
        audio, video, text: encoders; null leaves the stream out. Images go through `video`.
        video_column, audio_column, image_column: null finds it.
        text_columns: null finds them; several are pieces of one text, in this order.
        clip_seconds: length of a document; long media are cut into as many as they hold, for which
            every sound and video is read once at the start. null: each row is one document.
        random_start, run_seconds: see `datamodules.AudioVisual`.
        held_out_share: expected share of the rows for validation, and as much for testing.
        limits: what a medium may cost; larger ones are skipped by name.
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
        video_column: str | None = None,
        audio_column: str | None = None,
        image_column: str | None = None,
        text_columns: list[str] | None = None,
        clip_seconds: float | None = 2.0,
        random_start: bool = False,
        run_seconds: float = 64.0,
        held_out_share: float = 0.1,
        limits: Limits = Limits(),
        loading: Loading | None = None,
        seed: int = 0,
    ) -> None:
        windows = Windows(clip_seconds, random_start, run_seconds, held_out_share, limits)
        super().__init__(
            audio=audio, video=video, text=text, windows=windows, loading=loading, seed=seed
        )
        self.root = Path(root).expanduser()
        texts = None if text_columns is None else tuple(text_columns)
        self.columns = Asked(video_column, audio_column, image_column, texts)
        self._digests: dict[str, str] = {}

    def fingerprint(self) -> dict[str, str]:
        """A hash of every file's size, head and tail, by its path below the root."""
        return dict(self._digests)

    def look(self) -> Sequence[Look | Skipped]:
        pyarrow_parquet()  # its absence is said before anything else
        folder = self.root if self.root.is_dir() else self.root.parent
        paths = [Path(p) for p in list_addresses(str(self.root), ".parquet", schemes=("file",))]
        show = self._place()[0] == 0
        opened = look_at(paths, lambda path: self._table(path, folder), show=show)
        found: list[Look | Skipped] = []
        said: set[str] = set()
        rows: list[Row] = []
        splits: list[Split | None] = []
        for path, table in opened.items():
            if isinstance(table, Skipped):
                found.append(table)
                continue
            self._digests[table.name] = content_hash(path)
            if show and str(table.columns) not in said:
                said.add(str(table.columns))
                print(f"note: {table.name}: {table.columns}")
            rows += table.rows()
            splits += [split_named(table.name)] * (len(rows) - len(splits))
        seen = look_at(range(len(rows)), lambda n: self._look_at(rows[n]), show=show)  # type: ignore[arg-type]
        for look, split in zip(seen.values(), splits, strict=True):
            if look is not None:
                found.append(look if isinstance(look, Skipped) else replace(look, split=split))
        empty = sum(look is None for look in seen.values())
        if empty and show:
            print(f"note: {empty:,} rows hold neither media nor text and are left out")
        return found

    def _table(self, path: Path, folder: Path) -> Table | Skipped:
        streams = [name for name in ("video", "audio", "text") if getattr(self.codecs, name)]
        try:
            return Table(path, folder, self.columns, tuple(streams), self.windows.limits.max_bytes)
        except MediaError as error:
            return skipped(error)

    def _look_at(self, row: Row) -> Look | Skipped | None:
        """A row's header; media are read only where their length decides the documents."""
        digest = hashlib.sha256(row.name.encode()).hexdigest()
        columns, info = row.table.columns, row.guess()
        has_text = row.table.has_text(row.group, row.number)
        if columns.medium is None:
            return Look(info, row, digest, True) if has_text else None
        if columns.kind != "image" and self.windows.clip_seconds is not None:
            try:
                info = replace(probe(row.media(), self.windows.limits), path=info.path)
            except MediaError as error:
                return replace(skipped(error), source=row.name)
        return Look(info, row, digest, has_text or bool(info.text_codec))

    def documents(self, split: Split) -> Documents:
        if self._sources is None:
            raise RuntimeError("call setup() first")
        moves = self.windows.random_start and split == "train"
        return RowDocuments(self, self._sources[split], moves)


class RowDocuments(WindowDocuments):
    """Documents of one split; those of neighbouring rows are read at one go."""

    def runs(self) -> Sequence[range] | None:
        found: list[range] = []
        place: tuple[int, int] | None = None
        rows = 0
        for source, end in zip(self.sources, self._ends, strict=True):
            assert isinstance(source, Stored) and isinstance(source.holder, Row)
            row = source.holder
            first, here = end - self._slots(source), (id(row.table), row.group)
            if found and here == place and rows < ROWS_TOGETHER and end - first == 1:
                found[-1] = range(found[-1].start, end)
                rows += 1
            else:
                found.append(range(first, end))
                rows = 1
            place = here if end - first == 1 else None  # a long one stands alone
        return found if len(found) < len(self) else None


class Table:
    """One file; keeps the last row groups that were read, in the process that reads them."""

    def __init__(
        self, path: Path, folder: Path, asked: Asked, streams: tuple[str, ...], max_bytes: int
    ) -> None:
        self.path, self.folder, self.max_bytes = path, folder.resolve(), max_bytes
        self.name = path.relative_to(folder).as_posix()
        file = self._opened()
        self.columns: Columns = find_columns(file.schema_arrow, asked, streams, self.name)
        self.counts = [
            file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)
        ]
        if not self.columns.medium and not self.columns.texts:
            have = ", ".join(file.schema_arrow.names)
            raise UserError(
                f"{path}: no column that the recipe uses among {have}; name one with "
                "data.text_columns, data.video_column, data.audio_column or data.image_column"
            )
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._file: Any = None
        self._media: OrderedDict[int, Any] = OrderedDict()
        self._texts: OrderedDict[int, Any] = OrderedDict()
        self._lock = Lock()  # several threads take the first look

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pid": 0, "_file": None, "_media": {}, "_texts": {}, "_lock": None}

    def rows(self) -> list[Row]:
        """All rows, in order."""
        places = [(g, number) for g, count in enumerate(self.counts) for number in range(count)]
        return [Row(self, *place, number) for number, place in enumerate(places)]

    def _opened(self) -> Any:
        try:
            return pyarrow_parquet().ParquetFile(self.path)
        except (OSError, ValueError) as error:  # pyarrow's own errors are kinds of these
            words = " ".join(str(error).split())[:200]
            raise MediaError(self.path, f"cannot be read as parquet: {words}") from error

    def cell(self, column: str, group: int, number: int) -> Any:
        """The value of a cell as plain Python; raises MediaError."""
        return self._group(group, column == self.columns.medium)[column][number].as_py()

    def has_text(self, group: int, number: int) -> bool:
        """Whether any of the text columns says something in a row."""
        return any(_pieces(self.cell(column, group, number)) for column in self.columns.texts)

    def _group(self, group: int, media: bool) -> Any:
        """A row group: its media, or its texts, which are small."""
        if self._pid != os.getpid():
            self._forget()  # nothing that was open before a fork is used after it
        kept, most = (self._media, KEPT_GROUPS) if media else (self._texts, 4 * KEPT_GROUPS)
        with self._lock:
            if group not in kept:
                columns = [self.columns.medium] if media else list(self.columns.texts)
                while len(kept) >= most:
                    kept.popitem(last=False)
                kept[group] = self._read(group, columns)
            kept.move_to_end(group)
            return kept[group]

    def _read(self, group: int, columns: list[Any]) -> Any:
        try:
            if self._file is None:
                self._file = self._opened()
            return self._file.read_row_group(group, columns=columns, use_threads=False)
        except (OSError, ValueError) as error:
            words = " ".join(str(error).split())[:200]
            raise MediaError(self.name, f"row group {group} is damaged: {words}") from error


@dataclass(frozen=True)
class Row:
    """One row of a table: `number` in its row group, `place` in the file."""

    table: Table
    group: int
    number: int
    place: int

    @property
    def name(self) -> str:
        return f"{self.table.name}!{self.place}"

    def guess(self) -> MediaInfo:
        """What the columns say that it holds."""
        kind = self.table.columns.kind
        return MediaInfo(
            Path(self.name + (SUFFIXES[kind] if kind else "")),
            0.0,
            kind in ("video", "image"),
            kind in ("video", "audio"),
            still=kind == "image",
        )

    def media(self) -> MediaBytes | Path:
        column = self.table.columns.medium
        assert column is not None
        cell = self._cell(column)
        data, path = cell, None
        if isinstance(cell, dict):
            data, path = cell.get("bytes"), cell.get("path")
        elif isinstance(cell, str):
            data, path = None, cell
        if isinstance(data, bytes):
            suffix = os.path.splitext(path or "")[1] or SUFFIXES[self.table.columns.kind or "video"]
            return MediaBytes(self.name + suffix, data)
        if path is None:
            raise MediaError(self.name, f"column {column!r} is empty in this row", kind="empty")
        return self._referenced(path)

    def _referenced(self, path: str) -> Path:
        """A file below the table's folder; anything else is refused."""
        inside = (self.table.folder / path).resolve() if "\0" not in path else Path("/")
        if "://" in path or os.path.isabs(path) or not inside.is_relative_to(self.table.folder):
            raise MediaError(
                self.name, f"refers to {path[:200]!r}, which is no path below {self.table.folder}"
            )
        return inside

    def texts(self) -> tuple[TextPiece, ...]:
        found = [_pieces(self._cell(column)) for column in self.table.columns.texts]
        return tuple(TextPiece(words) for pieces in found for words in pieces)

    def _cell(self, column: str) -> Any:
        try:
            return self.table.cell(column, self.group, self.number)
        except MediaError as error:
            reason = f"{error.path}: {error.reason}"
            raise MediaError(self.name, reason, kind=error.kind) from error


def _pieces(cell: Any) -> list[str]:
    """Texts of a cell that are not empty."""
    texts = cell if isinstance(cell, list) else [cell]
    return [text.strip() for text in texts if isinstance(text, str) and text.strip()]


def split_named(name: str) -> Split | None:
    """The split that a file's name or a folder of it says: "data/train-00000-of-00005.parquet"."""
    for part in reversed(name.split("/")):
        found = _SPLIT_NAME.search(part.removesuffix(".parquet").lower())
        if found:
            return _SPLITS.get(found[1], "val")
    return None


def pyarrow_parquet() -> ModuleType:
    """pyarrow.parquet, or an error that says how to get it."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            'datamodules.Parquet needs pyarrow: pip install "mmpredict[parquet]"'
        ) from error
    return pyarrow.parquet
