"""What the rows of a run are filled with: the figures of packing, for the log."""

from __future__ import annotations

from mmpredict.schema import Batch, Layout


class PackingMeter:
    """Counts slots, real tokens and documents of the batches of this process."""

    def __init__(self, layout: Layout | None) -> None:
        self.names = {s.modality: s.name for s in layout.streams} if layout else {}
        self.slots = self.documents = self.rows = 0
        self.tokens: dict[int, int] = {}

    def add(self, batch: Batch) -> None:
        self.slots += batch.doc_id.numel()
        self.rows += batch.num_rows
        self.documents += int(batch.doc_id.max(dim=1).values.sum())
        found, counts = batch.modality.unique(return_counts=True)
        for modality, count in zip(found.tolist(), counts.tolist(), strict=True):
            if modality >= 0:
                self.tokens[modality] = self.tokens.get(modality, 0) + count

    def figures(self) -> dict[str, float]:
        """ "efficiency" (real tokens a slot), "documents_per_row", and each stream's share of the
        real tokens ("share/video")."""
        if not self.slots:
            return {}
        total = sum(self.tokens.values())
        shares = {
            f"share/{self.names.get(m, m)}": count / max(1, total)
            for m, count in sorted(self.tokens.items())
        }
        return {
            "efficiency": total / self.slots,
            "documents_per_row": self.documents / self.rows,
            **shares,
        }
