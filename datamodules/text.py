"""Text alone. In: .txt and .jsonl files, or the text that ships with Python. Out: documents."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from datamodules.base import ClipDataModule, Loading, Split
from datamodules.feed.documents import Documents, Skipped
from datamodules.feed.split import split_by_hash
from mmpredict.media import MediaError, read_text
from mmpredict.media.speech import mended
from mmpredict.schema import Batch, Clip, Modality, TextPiece, Tokens
from mmpredict.sequence import interleave
from mmpredict.tokens import TextTokens

SUFFIXES = (".txt", ".jsonl")
PASSAGE_CHARACTERS = 20_000  # split unit: long texts are cut into passages of whole lines


class Text(ClipDataModule):
    """Text files; without a folder, the 465 thousand characters of Python's own help topics.

    Texts are cut into passages of whole lines, passages are split between training, validation and
    test by a hash of their content (see `split_by_hash`), and each is cut into documents of
    `context_length` tokens. Nothing is dropped but white space around paragraphs of a file.

    Args:
        root: folder (searched with its subfolders, hidden ones left out) or one file, .txt or
            .jsonl with a "text" key; null for `pydoc_data.topics`.
        text: encoder.
        held_out_share: expected share of the passages for validation, and as much again for
            testing.
        loading: how documents become batches.
        seed: of the order of the training documents.
    """

    def __init__(
        self,
        root: str | None = None,
        text: TextTokens = TextTokens(),
        *,
        held_out_share: float = 0.05,
        loading: Loading | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(audio=None, video=None, text=text, loading=loading, seed=seed)
        if not 0 < held_out_share < 0.5:
            raise ValueError(f"data.held_out_share={held_out_share:g} must lie between 0 and 0.5")
        self.root = None if root is None else Path(root).expanduser()
        self.held_out_share = held_out_share
        self._passages: dict[Split, list[str]] | None = None
        self._documents: dict[Split, list[np.ndarray]] = {}
        self._digests: dict[str, str] = {}

    def setup(self, stage: str | None = None) -> None:
        if self._passages is None:
            self._passages = self._split(self._texts())
        super().setup(stage)

    def _texts(self) -> list[str]:
        if self.root is None:
            topics = importlib.import_module("pydoc_data.topics").topics
            texts = [topics[name] for name in sorted(topics)]
            self._digests = {"pydoc_data.topics": digest("\n".join(texts))}
            return texts
        files = [self.root] if self.root.is_file() else self._listed()
        if not files:
            lack = f"holds no {' or '.join(SUFFIXES)} file"
            raise ValueError(
                f"data.root={self.root} {lack if self.root.exists() else 'does not exist'}; give "
                "the folder that holds your texts, or null for the text that ships with Python"
            )
        self.skip_log.num_sources = len(files)
        texts: list[str] = []
        for path in files:
            try:
                pieces = read_text(path)
            except MediaError as error:
                self.skip_log.note(Skipped(error.path, error.reason))
                continue
            name = path.name if path == self.root else path.relative_to(self.root).as_posix()
            self._digests[name] = digest("\n".join(piece.text for piece in pieces))
            if path.suffix.lower() == ".jsonl":
                texts += [piece.text for piece in pieces]
            else:
                texts.append("\n\n".join(piece.text for piece in pieces))
        self.skip_log.check()
        return [mended(text) for text in texts if text]

    def _listed(self) -> list[Path]:
        return sorted(
            path
            for path in self.root.rglob("*")
            if path.suffix.lower() in SUFFIXES
            and not any(part.startswith(".") for part in path.relative_to(self.root).parts)
        )

    def _split(self, texts: list[str]) -> dict[Split, list[str]]:
        passages = [passage for text in texts for passage in cut_passages(text)]
        if len(set(passages)) < 3:
            raise ValueError(
                f"data.root={self.root} holds {sum(map(len, texts))} characters, too few to hold "
                f"out a validation and a test passage of up to {PASSAGE_CHARACTERS}; give more text"
            )
        hashes = [digest(passage) for passage in passages]
        split: dict[Split, list[str]] = {"train": [], "val": [], "test": []}
        names = split_by_hash(hashes, self.held_out_share)
        for _, name, passage in sorted(zip(hashes, names, passages, strict=True)):
            split[name].append(passage)
        return split

    def documents(self, split: Split) -> Documents:
        if self._passages is None:
            raise RuntimeError("call setup() first")
        if split not in self._documents:
            self._documents[split] = [
                ids
                for passage in self._passages[split]
                for ids in self._ids(passage, self.loading.context_length)
            ]
        return _Passages(self, self._documents[split])

    def _ids(self, passage: str, length: int) -> list[np.ndarray]:
        tokens = self.codecs.text.encode(Clip(texts=(TextPiece(passage),)))
        ids = tokens.contents.numpy().astype(np.int32)
        return [ids[start : start + length] for start in range(0, len(ids), length)]

    def fingerprint(self) -> dict[str, str]:
        """By file; of the text that ships with Python, as a whole."""
        return self._digests

    def corpus(self) -> Iterable[str]:
        assert self._passages is not None
        return self._passages["train"]


class _Passages(Documents):
    def __init__(self, module: Text, documents: list[np.ndarray]) -> None:
        self.module, self.ids = module, documents

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, index: int) -> str:
        return f"passage part {index}"

    def length(self, epoch: int, index: int) -> int:
        return len(self.ids[index])

    def document(self, epoch: int, index: int) -> Batch:
        ids = torch.from_numpy(self.ids[index].astype(np.int64))
        untimed = torch.full((len(ids),), float("nan"), dtype=torch.float64)
        return interleave([Tokens(Modality.TEXT, ids, untimed)], self.module.layout)


def digest(text: str) -> str:
    """sha256 of a text that may hold lone surrogates."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def cut_passages(text: str) -> list[str]:
    """Whole lines, up to PASSAGE_CHARACTERS; a longer line is cut. Joined, they are `text`."""
    passages: list[str] = []
    for line in text.splitlines(keepends=True):
        for start in range(0, len(line), PASSAGE_CHARACTERS):
            part = line[start : start + PASSAGE_CHARACTERS]
            if passages and len(passages[-1]) + len(part) <= PASSAGE_CHARACTERS:
                passages[-1] += part
            else:
                passages.append(part)
    return passages
