"""Laws of what a run says of its speed, its work and its memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mmpredict.model import HeadConfig, Predictor, PredictorConfig
from mmpredict.model.fast_weights import FastWeightsConfig
from mmpredict.model.sight import dense_mask
from mmpredict.objectives import LossWeights, next_loss
from mmpredict.schema import Batch
from mmpredict.sequence import pack
from mmpredict.training import Pretrain, flops, memory, pretrain
from mmpredict.training import meters as meters_file
from mmpredict.training.meters import Meters
from mmpredict.training.progress import Progress
from tests import builders

TEXT = builders.TEXT


def loss(model: Predictor, batch: Batch) -> Tensor:
    return next_loss(model(batch), model.layout, LossWeights()).total


def big(**config: Any) -> Predictor:
    """Wide enough that what the formulas leave out is little."""
    torch.manual_seed(0)
    sizes = {"dim": 128, "depth": 3, "num_heads": 4} | config
    return Predictor(builders.LAYOUT, PredictorConfig(**sizes))


def words(rows: int = 2, length: int = 96) -> Batch:
    documents = [builders.document({TEXT}, seed=s, blocks=(0, 0, length)) for s in range(rows)]
    return pack([[document] for document in documents], context_length=length)


def scenes(rows: int = 3) -> Batch:
    documents = [builders.document(seed=s, blocks=(40, 20, 40)) for s in range(rows)]
    return pack([[document] for document in documents], context_length=200)


def test_the_formula_counts_what_torch_counts():
    """The reference computes all pairs of a row, seen or not."""
    model, batch = big(attention="reference"), words()
    with FlopCounterMode(display=False) as counter:
        loss(model, batch).backward()
    rows, length = batch.doc_id.shape
    parts = flops.work_of(model, batch).parts(flops.positions(batch), rows * length**2)
    assert sum(parts.values()) == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_heads_are_counted_forward_and_backward():
    """All streams, flow heads and all; the trunk's own count is taken off."""
    model, batch = big(depth=1), scenes()
    with FlopCounterMode(display=False) as counter:
        loss(model, batch).backward()
    by_module = counter.get_flop_counts()
    outside = sum(sum(by_module[f"Predictor.{part}"].values()) for part in ("trunk", "embed"))
    heads = flops.work_of(model, batch).parts(flops.positions(batch), 0)["heads"]
    assert heads == pytest.approx(counter.get_total_flops() - outside, rel=0.1)


def test_counting_leaves_the_chances_and_the_model_as_they_were():
    model, batch = big(depth=1), scenes()
    torch.manual_seed(3)
    expected = loss(model, batch)
    torch.manual_seed(3)
    flops.head_work(model, batch)
    assert torch.equal(loss(model, batch), expected)


def test_an_expert_counts_once_and_fast_weights_count():
    plain = flops.token_work(big())
    experts = flops.token_work(big(experts="ffn"))
    assert experts == plain
    fast = FastWeightsConfig(every=3, num_heads=2, key_dim=8, value_dim=16)
    memory_matrices = 2 * 8 * 2 + 2 * 16 * 2 + 2 * 2 + 2 * 16  # q k, v gate, strength decay, out
    added = flops.token_work(big(fast_weights=fast)) - plain
    assert added == 6 * 128 * memory_matrices + 18 * 2 * 8 * 16


@pytest.mark.parametrize("window", [0, 1, 5])
def test_visible_pairs_are_those_of_the_law(window: int):
    batch = builders.packed_rows()
    seen = dense_mask(batch.doc_id, batch.block_id, window)[:, 0] & (batch.doc_id > 0)[:, :, None]
    assert int(flops.visible_pairs(batch, window)) == int(seen.sum())


def test_positions_are_the_useful_ones():
    batch = builders.packed_rows()
    assert sum(flops.positions(batch).values()) == batch.num_tokens < batch.doc_id.numel()


def kept_bytes(call: Callable[[], Any], model: Predictor) -> float:
    """What autograd keeps for the backward, each storage once, the weights aside."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Any] = {}

    def pack_hook(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor):
        call()
    return float(sum(storage.nbytes() for storage in kept.values()))


@pytest.mark.parametrize(
    ("half", "config"),
    [
        (False, {}),
        (True, {}),
        (True, {"dim": 256, "num_heads": 2, "depth": 2}),
        (False, {"checkpoint_activations": True, "depth": 6}),
        (True, {"heads": {"video": HeadConfig(draws=2, depth=3)}}),
        (False, {"heads": {"video": HeadConfig(kind="regression", mean_depth=2)}}),
        pytest.param(True, {"compile": True, "depth": 2}, marks=pytest.mark.slow),
    ],
)
def test_memory_is_what_autograd_keeps(half: bool, config: dict[str, Any]):
    """Within a fifth: activations, and under bfloat16 the copies of the weights."""
    config = dict(config)
    compiles = config.pop("compile", False)
    model, batch = big(**config), scenes()
    if compiles:
        model.trunk.compile_layers()
    said = memory.memory_of(model, batch, half=half)

    def step() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half, cache_enabled=False):
            return loss(model, batch)

    copies = said.weights - 16 * sum(p.numel() for p in model.parameters())
    formula = said.trunk + said.heads + copies
    recomputed = 0.0
    if config.get("checkpoint_activations"):  # one layer is there while it is computed again
        layer = memory.memory_of(big(depth=1), batch, half=half).trunk
        recomputed = layer - 4 * 128 * batch.doc_id.numel()
    assert kept_bytes(step, model) + max(0.0, recomputed) == pytest.approx(formula, rel=0.2)


def test_weights_take_sixteen_bytes_muon_less_an_average_more():
    model, batch = big(), words()
    count = sum(p.numel() for p in model.parameters())
    plain = memory.memory_of(model, batch, half=False)
    assert plain.parameters == count and plain.weights == 16 * count
    assert memory.memory_of(model, batch, half=False, average=True).weights == 20 * count
    assert memory.memory_of(model, batch, half=False, muon=1000).weights == 16 * count - 4000
    model.trunk.requires_grad_(False)
    frozen = sum(p.numel() for p in model.trunk.parameters())
    assert memory.memory_of(model, batch, half=False).weights == 16 * count - 12 * frozen


class Rows(torch.utils.data.IterableDataset):
    """The same batch again and again, after a pause."""

    def __init__(self, batch: Batch, steps: int, pause_s: float = 0.0) -> None:
        self.batch, self.steps, self.pause_s = batch, steps, pause_s

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.steps):
            time.sleep(self.pause_s)
            yield self.batch


class Logged(pl.loggers.Logger):
    """Keeps what is logged."""

    name, version = "logged", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append(metrics | {"step": step})

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing."""


def small() -> Pretrain:
    torch.manual_seed(0)
    heads = {name: HeadConfig(dim=32, depth=1) for name in ("audio", "video")}
    config = PredictorConfig(dim=32, depth=1, num_heads=2, heads=heads)
    model = Pretrain(builders.LAYOUT, config, ema=0.9)
    model.statistics_taken = True
    return model


def fit(
    folder: Path, model: pl.LightningModule, rows: Rows, *callbacks: pl.Callback, **settings: Any
) -> list[dict[str, float]]:
    logged = Logged()
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=rows.steps // settings.get("accumulate_grad_batches", 1),
        log_every_n_steps=4,
        logger=logged,
        enable_checkpointing=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        callbacks=list(callbacks),
        **settings,
    )
    loader = torch.utils.data.DataLoader(rows, batch_size=None)
    trainer.fit(model, train_dataloaders=loader)
    return [row for row in logged.rows if "perf/tokens_per_s" in row]


def test_metrics_come_at_logged_steps_and_agree_with_each_other(tmp_path: Path):
    meters, batch = Meters(0.01), scenes(2)
    start = time.monotonic()
    rows = fit(tmp_path, small(), Rows(batch, 12), meters, Progress())
    elapsed = time.monotonic() - start
    assert [row["step"] for row in rows] == [3, 7, 11]
    parts = meters.work.parts(flops.positions(batch), float(flops.visible_pairs(batch)))
    per_token = sum(parts.values()) / batch.num_tokens
    for row in rows:
        assert row["perf/tokens_per_s"] > 4 * batch.num_tokens / elapsed
        expected = row["perf/tokens_per_s"] * per_token
        assert row["perf/tflops_per_s"] == pytest.approx(expected / 1e12, rel=1e-3)
        assert row["perf/mfu"] == pytest.approx(expected / meters.matmul, rel=1e-3)
        assert row["train/grad_norm"] > 0 and row["perf/memory_gb"] > 0.05


def test_waiting_for_data_is_told_from_working(tmp_path: Path):
    def waited_s(pause_s: float) -> float:
        batch = builders.packed_rows()
        (row,) = fit(tmp_path, small(), Rows(batch, 4, pause_s), Meters(0))
        assert "perf/mfu" not in row  # nothing was measured to hold it against
        return row["perf/data_wait"] * 4 * batch.num_tokens / row["perf/tokens_per_s"]

    slow, quick = waited_s(0.2), waited_s(0.0)
    assert 2 * 0.2 <= slow  # the window begins with the first batch, and one is fetched ahead
    assert quick < slow / 2


def test_micro_batches_count_and_are_logged_once_a_step(tmp_path: Path):
    rows = fit(tmp_path, small(), Rows(scenes(2), 16), Meters(0), accumulate_grad_batches=2)
    assert [row["step"] for row in rows] == [3, 7]


def test_a_stream_that_comes_later_is_counted_too(tmp_path: Path):
    class Turning(Rows):
        def __iter__(self) -> Iterator[Batch]:
            yield words()
            yield from Rows(scenes(2), self.steps - 1)

    meters = Meters(0)
    fit(tmp_path, small(), Turning(words(), 8), meters)
    assert set(meters.work.heads) == {builders.AUDIO, builders.VIDEO, TEXT}
    assert min(meters.work.heads.values()) > 0


def test_too_little_memory_is_said_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(meters_file, "available", lambda device: 1e5)
    with pytest.warns(UserWarning, match="loading.rows or context_length"):
        fit(tmp_path, small(), Rows(scenes(1), 4), Meters(0.01), Progress())
    said = [x for x in capsys.readouterr().out.splitlines() if x.startswith("cost")]
    assert len(said) == 1 and "6 N" in said[0] and "GEMM" in said[0]


class HostReads(TorchDispatchMode):
    """At which step a tensor was read by the host, outside the model and the loader's batches."""

    def __init__(self) -> None:
        super().__init__()
        self.trainer: pl.Trainer | None = None
        self.inside = False
        self.steps: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        if func in reads and not self.inside and self.trainer is not None:
            self.steps.append(self.trainer.global_step)
        return func(*args, **(kwargs or {}))


class Watched(Pretrain):
    """Marks where the model works: on a GPU the rest of the loop must not wait for it."""

    reads: HostReads

    def on_train_start(self) -> None:
        super().on_train_start()
        self.reads.trainer = self.trainer

    def on_train_end(self) -> None:
        self.reads.trainer = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.reads.inside = True
        try:
            return super().training_step(batch, batch_idx)
        finally:
            self.reads.inside = False

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        self.reads.inside = True
        try:
            return super().on_before_batch_transfer(batch, dataloader_idx)
        finally:
            self.reads.inside = False


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_nothing_is_read_from_the_device_between_logged_steps(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    """Trainer, clipping, verdicts, optimiser, average, meters and progress."""
    torch.manual_seed(0)
    monkeypatch.setattr(pretrain, "stays_on_device", lambda *_, scaled: not scaled)  # as on CUDA
    config = PredictorConfig(dim=32, depth=1, num_heads=2)
    model = Watched(builders.LAYOUT, config, ema=0.9, optimizer=kind)
    model.statistics_taken, model.reads = True, HostReads()
    with model.reads:
        fit(tmp_path, model, Rows(builders.packed_rows(), 12), Meters(0), Progress(refresh_s=60))
    # Step 0 counts what a step costs; after step 4, 8, 12 the loggers read.
    assert model.reads.steps and set(model.reads.steps) <= {0, 4, 8, 12}
