"""How often an answer is right, by how long ago it last stood in the document: what a memory is
for.

In: batches whose counted text tokens are answers. Out: a table, `recall.json`, and numbers for the
log. The distance between an answer and its last occurrence is counted in positions of the row, like
the window of attention.

Shapes: B rows, L positions, M answers, D documents, G groups of distances.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from mmpredict.model import Predictor
from mmpredict.schema import Batch, Modality
from mmpredict.training.callbacks import evaluating, folder

NEW = "new"
RESAMPLES = 1000  # of documents, for an interval
LEVEL = 0.95


def distances(batch: Batch, modality: int) -> Tensor:
    """(B, L) int64 at the positions of a discrete stream: how many positions before it the same id
    last stood in the same document; 0 if it is new to the document, -1 elsewhere."""
    mine_BL = batch.modality == modality
    ids_BL = torch.full_like(batch.modality, -1)
    ids_BL[mine_BL] = batch.contents[modality]
    same_BLL = (ids_BL[:, :, None] == ids_BL[:, None, :]) & mine_BL[:, None]
    same_BLL &= batch.doc_id[:, :, None] == batch.doc_id[:, None, :]
    place_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
    last_BL = (same_BLL.tril(-1) * (place_L + 1)).amax(-1)
    since_BL = torch.where(last_BL > 0, place_L + 1 - last_BL, 0)
    return torch.where(mine_BL, since_BL, -1)


def group_names(window: int, num_groups: int) -> list[str]:
    """What `groups` numbers: "new", "1-16", "17-32", "33-64", ..."""
    ends = [0, *(window << n for n in range(num_groups - 1))]
    return [NEW, *(f"{before + 1}-{end}" for before, end in zip(ends, ends[1:], strict=False))]


def groups(distance_M: Tensor, window: int) -> Tensor:
    """0 for a new answer, 1 for distances up to the window, 2 up to twice of it, and so on."""
    doublings_M = ((distance_M.double() / window).clamp(min=1).log2() - 1e-9).ceil().long()
    return torch.where(distance_M > 0, 1 + doublings_M, 0)


class RecallTally:
    """Right and counted answers of each document, by group.

    Args:
        predictor: the model.
        window: positions of the first group; each further group reaches twice as far.
        modality: the stream whose counted ids are the answers.
    """

    def __init__(
        self, predictor: Predictor, window: int, modality: int = int(Modality.TEXT)
    ) -> None:
        self.predictor, self.window, self.modality = predictor, window, modality
        self.tables: list[Tensor] = []

    @torch.no_grad()
    def add(self, batch: Batch) -> None:
        """Ask the model for all answers of a batch."""
        model, modality = self.predictor, self.modality
        asked_N = model.counted(batch, modality)
        mine_BL = batch.modality == modality
        z_MZ = model.condition(batch, model.hidden(batch), modality)[asked_N][:, 0]
        logits_MV = model.heads[model.layout[modality].name].logits(z_MZ)
        right_M = logits_MV.argmax(-1) == batch.contents[modality][asked_N]
        group_M = groups(distances(batch, modality)[mine_BL][asked_N], self.window)
        rows = torch.arange(batch.num_rows, device=mine_BL.device)[:, None] * batch.doc_id.shape[1]
        document_M = (rows + batch.doc_id)[mine_BL][asked_N]
        _, document_M = document_M.unique(return_inverse=True)
        if not len(group_M):
            return
        table = torch.zeros(2, int(document_M.max()) + 1, int(group_M.max()) + 1)
        index = (document_M.cpu(), group_M.cpu())
        table[0].index_put_(index, right_M.float().cpu(), accumulate=True)
        table[1].index_put_(index, torch.ones(len(group_M)), accumulate=True)
        self.tables.append(table)

    def table(self) -> Tensor:
        """(2, D, G): right answers and answers."""
        widest = max((t.shape[-1] for t in self.tables), default=1)
        padded = [torch.nn.functional.pad(t, (0, widest - t.shape[-1])) for t in self.tables] or [
            torch.zeros(2, 0, 1)
        ]
        return torch.cat(padded, dim=1)


def summary(table_2DG: Tensor, window: int, *, by_answers: bool = False) -> dict[str, Any]:
    """Accuracy with its interval over documents: in all, by distance and, with `by_answers`, by the
    number of answers of the document."""
    answers_D = table_2DG[1].sum(-1)
    names = group_names(window, table_2DG.shape[-1])
    result: dict[str, Any] = {
        "all": _score(table_2DG.sum(-1)),
        "beyond_window": _score(table_2DG[..., 2:].sum(-1)),
        "by_distance": {
            name: _score(table_2DG[..., group])
            for group, name in enumerate(names)
            if table_2DG[1, :, group].any()
        },
    }
    if by_answers:
        result["by_answers"] = {
            str(int(count)): _score(table_2DG[:, answers_D == count].sum(-1))
            for count in answers_D.unique()
        }
    return result


def _score(table_2D: Tensor) -> dict[str, float]:
    """Accuracy, the bounds of its bootstrap interval over documents, and the number of answers."""
    drawn = torch.randint(
        max(1, table_2D.shape[1]),
        (RESAMPLES, table_2D.shape[1]),
        generator=torch.Generator().manual_seed(0),
    )
    again_2R = table_2D.double()[:, drawn].sum(-1)
    right, count = table_2D.double().sum(-1).tolist()
    again_R = (again_2R[0] / again_2R[1])[again_2R[1] > 0]
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=again_R.dtype)
    low, high = again_R.quantile(tails).tolist() if len(again_R) else (float("nan"),) * 2
    accuracy = right / count if count else float("nan")
    return {"accuracy": accuracy, "low": low, "high": high, "answers": int(count)}


class RecallScore(Callback):
    """After training, `validate` and `test`: prints accuracy by distance, and writes `recall.json`.

    While training, every validation logs `val/recall/all` and `val/recall/beyond_window`.

    Args:
        window: positions of the first group of distances: those of attention. Each further group
            reaches twice as far.
        by_answers: score also by the number of answers that a document asks for.
    """

    def __init__(self, window: int, by_answers: bool = False) -> None:
        if window < 1:
            raise ValueError(f"RecallScore.window={window} must be at least 1")
        self.window, self.by_answers = window, by_answers
        self.results: dict[str, Any] = {}
        self._tally: RecallTally | None = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tally = RecallTally(pl_module.predictor, self.window)

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        self._tally.add(batch)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        scores = self._summary(trainer)
        pl_module.log_dict(
            {f"val/recall/{k}": scores[k]["accuracy"] for k in ("all", "beyond_window")},
            batch_size=1,
        )
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._finish(trainer, scores, "validation documents")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer, self._summary(trainer), "held-out test documents")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        most = 1 if trainer.fast_dev_run else trainer.limit_test_batches
        trainer.datamodule.setup("test")
        batches = trainer.datamodule.test_dataloader()
        self._tally = RecallTally(pl_module.predictor, self.window)
        with evaluating(pl_module):
            for batch in islice(batches, most if isinstance(most, int) else None):
                with trainer.precision_plugin.forward_context():
                    self._tally.add(batch.to(pl_module.device))
        self._finish(trainer, self._summary(trainer), "held-out test documents")

    def _summary(self, trainer: Trainer) -> dict[str, Any]:
        """Of the documents of all processes."""
        table = self._tally.table()
        if trainer.world_size > 1:
            found: list[Tensor] = [table] * trainer.world_size
            torch.distributed.all_gather_object(found, table)
            gathered = RecallTally(self._tally.predictor, self.window)
            gathered.tables = [t.cpu() for t in found]
            table = gathered.table()
        return summary(table, self.window, by_answers=self.by_answers)

    def _finish(self, trainer: Trainer, scores: dict[str, Any], title: str) -> None:
        self.results = scores
        if not trainer.is_global_zero:
            return
        path = folder(trainer, None) / "recall.json"
        _write(path, {"window": self.window, "of": title, **scores})
        print(f"\nanswers that are right, {title} (positions since the answer last stood):")
        for line in lines(scores):
            print(f"  {line}")
        print(f"  {path}")


def lines(scores: Mapping[str, Any]) -> list[str]:
    """The table of a summary."""
    rows = [("all", scores["all"])]
    rows += scores["by_distance"].items()
    rows += [(f"{n} answers", score) for n, score in scores.get("by_answers", {}).items()]
    return [
        f"{name:>12}  {score['accuracy']:6.1%}  [{score['low']:.1%}, {score['high']:.1%}]"
        f"  of {score['answers']}"
        for name, score in rows
    ]


def _write(path: Path, scores: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
