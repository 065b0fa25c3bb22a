"""Documents to fixed rows and back. In: one-document rows of any length. Out: a Batch of full rows.

Online best-fit over lengths: a document goes into the open row that it fills best; a row leaves
when nothing more is likely to fit, when too many rows are open, or when it has waited long. Which
document stands where is decided from lengths alone. Documents are never split.

Measured on a mixed load with 16 open rows (docs/LOG.md): 99 % of the slots are real tokens,
against 32 % when every batch is padded to its longest document.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmpredict.schema import Batch

FULL = 0.98  # a row this full is not worth waiting for
PATIENCE = 32  # documents per open row for which the oldest row waits, at most


@dataclass
class BestFit:
    """Assigns documents to rows, in a stream.

    Args:
        context_length: positions of a row.
        open_rows: rows kept waiting for a document that fills them.
    """

    context_length: int
    open_rows: int = 16
    _rows: list[list[Batch]] = field(default_factory=list)
    _lengths: list[int] = field(default_factory=list)
    _born: list[int] = field(default_factory=list)
    _documents: int = 0

    def add(self, document: Batch) -> list[list[Batch]]:
        """Place one document; returns the rows (lists of documents) that are ready."""
        length = document.modality.shape[1]
        if length > self.context_length:
            raise ValueError(
                f"a document has {length} positions, data.context_length is {self.context_length}; "
                "raise it, or shorten the clips, the frame rate or the frame size"
            )
        self._documents += 1
        fitting = [
            i for i, used in enumerate(self._lengths) if used + length <= self.context_length
        ]
        if fitting:
            best = max(fitting, key=lambda i: self._lengths[i])
            self._rows[best].append(document)
            self._lengths[best] += length
        else:
            self._rows.append([document])
            self._lengths.append(length)
            self._born.append(self._documents)
            best = len(self._rows) - 1
        ready = []
        if self._lengths[best] >= FULL * self.context_length:
            ready.append(self._close(best))
        if self._born and self._documents - self._born[0] >= PATIENCE * self.open_rows:
            ready.append(self._close(0))
        if len(self._rows) > self.open_rows:
            fullest = max(range(len(self._rows)), key=lambda i: self._lengths[i])
            ready.append(self._close(fullest))
        return ready

    def flush(self) -> list[list[Batch]]:
        """All rows still open, oldest first."""
        return [self._close(0) for _ in range(len(self._rows))]

    def _close(self, index: int) -> list[Batch]:
        self._lengths.pop(index)
        self._born.pop(index)
        return self._rows.pop(index)


def pack(rows: list[list[Batch]], context_length: int) -> Batch:
    """Lay each list of documents side by side in one row and pad the row.

    Args:
        rows: for each row its documents, one-document rows made by `interleave`.
        context_length: positions of a row.

    Returns:
        a Batch with B = len(rows), L = context_length; `unpack` undoes it exactly.
    """
    packed = {
        "modality": torch.full((len(rows), context_length), -1),
        "block_id": torch.full((len(rows), context_length), -1),
        "doc_id": torch.zeros(len(rows), context_length, dtype=torch.int64),
        "positions": torch.zeros(len(rows), context_length, 3),
        "end_s": torch.full((len(rows), context_length), float("nan"), dtype=torch.float64),
        "prev_same": torch.full((len(rows), context_length), -1),
        "prev_any": torch.full((len(rows), context_length), -1),
        "loss_mask": torch.zeros(len(rows), context_length, dtype=torch.bool),
    }
    contents: dict[int, list[Tensor]] = {}
    for b, documents in enumerate(rows):
        start, first_block = 0, 0
        for number, doc in enumerate(documents, start=1):
            length = doc.modality.shape[1]
            if start + length > context_length:
                raise ValueError(
                    f"row {b} needs {start + length} positions, it has {context_length}"
                )
            here = slice(start, start + length)
            for name in ("modality", "positions", "end_s", "loss_mask"):
                packed[name][b, here] = getattr(doc, name)[0]
            packed["block_id"][b, here] = doc.block_id[0] - doc.block_id[0, 0] + first_block
            packed["doc_id"][b, here] = number
            for name in ("prev_same", "prev_any"):
                index = getattr(doc, name)[0]
                packed[name][b, here] = torch.where(index < 0, index, index + start)
            for modality, values in doc.contents.items():
                contents.setdefault(modality, []).append(values)
            start += length
            first_block = int(packed["block_id"][b, start - 1]) + 1
    return Batch(**packed, contents={m: torch.cat(parts) for m, parts in sorted(contents.items())})


def unpack(batch: Batch) -> list[list[Batch]]:
    """Undo `pack`: for each row its documents, as one-document rows."""
    taken = dict.fromkeys(batch.contents, 0)
    rows = []
    for b in range(batch.num_rows):
        documents = []
        for number in range(1, int(batch.doc_id[b].max()) + 1):
            here = batch.doc_id[b] == number
            start = int(here.nonzero()[0])
            contents = {}
            for modality, values in batch.contents.items():
                count = int((batch.modality[b][here] == modality).sum())
                if count:
                    contents[modality] = values[taken[modality] : taken[modality] + count]
                taken[modality] += count
            documents.append(_document(batch, b, here, start, contents))
        rows.append(documents)
    return rows


def _document(batch: Batch, b: int, here: Tensor, start: int, contents: dict) -> Batch:
    def cut(values_BL: Tensor) -> Tensor:
        return values_BL[b][here][None]

    def shifted(index_BL: Tensor) -> Tensor:
        index = cut(index_BL)
        return torch.where(index < 0, index, index - start)

    block_id = cut(batch.block_id)
    return Batch(
        modality=cut(batch.modality),
        block_id=block_id - block_id[0, 0],
        doc_id=torch.ones_like(block_id),
        positions=cut(batch.positions),
        end_s=cut(batch.end_s),
        prev_same=shifted(batch.prev_same),
        prev_any=shifted(batch.prev_any),
        loss_mask=cut(batch.loss_mask),
        contents=contents,
    )
