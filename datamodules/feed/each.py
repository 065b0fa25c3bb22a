"""One document after the other, each by its name: `mmpredict predict` says what of what."""

from __future__ import annotations

from collections.abc import Iterator

from datamodules.feed.documents import Documents, Skipped
from datamodules.feed.skips import SkipLog
from mmpredict.schema import Batch


class EachDocument:
    """Iterates documents in their order, one to a batch, unpadded; what cannot be read is logged.

    Args:
        documents: what to read.
        skip_log: where unreadable documents are counted.
        rank, world_size: this process takes every world_size-th document, from `rank` on.
    """

    def __init__(
        self, documents: Documents, skip_log: SkipLog, *, rank: int = 0, world_size: int = 1
    ) -> None:
        self.documents, self.skip_log = documents, skip_log
        self.rank, self.world_size = rank, world_size
        self.names: list[str] = []  # of the documents given out so far, in their order

    def __iter__(self) -> Iterator[Batch]:
        self.names.clear()
        for index in range(self.rank, len(self.documents), self.world_size):
            item = self.documents.document(0, index)
            if isinstance(item, Skipped):
                self.skip_log.add(item)
                continue
            self.names.append(self.documents.name(index))
            yield item
