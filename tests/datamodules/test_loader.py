"""Order, ranks, workers and packing of `PackedLoader`, with documents that can be counted."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import time

import pytest
import torch

from datamodules import Loading, Skipped, World
from datamodules.feed.reading import DocumentError
from mmpredict.schema import Batch, Stop, UserError
from tests.datamodules.small import (
    Numbered,
    all_documents,
    codecs,
    loader,
    loading,
    numbers,
    same,
    waiting,
)


def epochs(count: int, **options: object) -> list[list[Batch]]:
    batches = loader(Numbered(), **options)
    return [list(batches) for _ in range(count)]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("run", [0, 5])
def test_every_document_comes_once_an_epoch(run, known):
    """What does not fill a batch at an epoch's end waits for the next one; nothing else is left."""
    batches = loader(Numbered(run=run, known=known), seed=4)
    seen: list[int] = []
    for epoch in range(3):
        seen += numbers(batches)
        past = [n + 1000 * e for e in range(epoch) for n in range(23)]
        at = batches.position()
        past += [
            int(n) + 1000 * at["epoch"] for n in batches.plan(at["epoch"]).numbers[: at["place"]]
        ]
        assert sorted(seen + waiting(batches)) == sorted(past)
    assert at["epoch"] == 2 and at["place"] > 15


def test_every_batch_of_training_is_full():
    assert all(b.doc_id.shape == (2, 16) for batches in epochs(3, seed=0) for b in batches)


def test_an_epoch_that_is_too_small_for_a_batch_goes_on_with_the_next():
    batches = loader(Numbered(2), seed=0)
    assert [len(list(batches)) > 0 for _ in range(5)] == [True] * 5


@pytest.mark.parametrize("known", [False, True])
def test_validation_keeps_every_token(known):
    batches = list(loader(Numbered(known=known)))
    assert sum(batch.num_tokens for batch in batches) == sum(3 + n % 7 for n in range(23))
    assert all(batch.doc_id.shape == (2, 16) for batch in batches[:-1])


def test_validation_keeps_the_documents_and_never_changes():
    first, second = epochs(2)
    assert sorted(numbers(first)) == list(range(23))
    assert all(map(same, first, second))


def test_the_seed_decides_the_order_and_epochs_differ():
    one, again, other = (loader(Numbered(), seed=seed) for seed in (1, 1, 2))
    orders = [[b.plan(e).numbers.tolist() for e in range(3)] for b in (one, again, other)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0][0] != orders[0][1]
    assert orders[0][0] != list(range(23))


def test_the_order_does_not_touch_the_global_random_state():
    before = torch.get_rng_state()
    epochs(1, seed=3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("seed", [None, 5])
def test_batches_do_not_depend_on_the_number_of_workers(seed):
    """Two epochs, with workers that stay alive in between: bytes are equal."""
    for alone, together in zip(
        epochs(2, seed=seed), epochs(2, seed=seed, workers=2, timeout_s=60.0), strict=True
    ):
        assert len(alone) == len(together)
        assert all(map(same, alone, together))


def test_an_epoch_that_is_left_early_leaves_nothing_behind():
    """A trainer with limit_val_batches breaks off; the next epoch starts at its beginning."""
    batches = loader(Numbered(60), workers=2, timeout_s=60.0)
    next(iter(batches))
    assert sorted(numbers(batches)) == list(range(60))


def test_many_small_documents_do_not_run_out_of_open_files():
    """Rows of hundreds of documents wait at once, each in many tensors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        batches = loader(
            Numbered(300), workers=1, timeout_s=60.0, context_length=1024, open_rows=16, rows=4
        )
        assert sorted(numbers(batches)) == list(range(300))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_document_that_is_too_long_is_cut_and_counted():
    batches = loader(Numbered(4, length=lambda n: 10 + 5 * n))
    assert sum(batch.num_tokens for batch in batches) == 10 + 15 + 16 + 16
    assert batches.skip_log.truncated == 2


def _raise(index: int) -> None:
    if index == 7:
        raise ZeroDivisionError("seven cannot be read")


def _kill(index: int) -> None:
    if index == 7:
        os.kill(os.getpid(), signal.SIGKILL)


def _hang(index: int) -> None:
    if index == 7:
        time.sleep(4)


@pytest.mark.parametrize(
    ("act", "timeout_s", "error", "words"),
    [
        (_raise, 60.0, DocumentError, "document 7: ZeroDivisionError: seven cannot be read"),
        (_kill, 60.0, UserError, "died while it read .*document 7"),
        (_hang, 1.0, UserError, "silent for 1 s while it read .*document 7"),
    ],
)
def test_a_worker_that_fails_stops_the_run_and_names_the_document(act, timeout_s, error, words):
    batches = loader(Numbered(act=act), workers=2, timeout_s=timeout_s)
    started = time.monotonic()
    with pytest.raises(error, match=words):
        list(batches)
    assert time.monotonic() - started < 20
    workers = batches._items._iterator._workers
    batches._items._iterator._shutdown_workers()
    assert not any(worker.is_alive() for worker in workers)


def test_a_failure_in_the_main_process_names_the_document():
    with pytest.raises(DocumentError, match="document 7: ZeroDivisionError"):
        list(loader(Numbered(act=_raise)))


def skip(every: int, files: int = 1000):
    def act(index: int) -> Skipped | None:
        return Skipped(f"file-{index % files}.mp4", "it ends early") if index % every == 0 else None

    return act


def test_skipped_documents_are_counted_once_by_file():
    batches = loader(Numbered(40, act=skip(10, files=20)))
    for _ in range(3):
        assert len(numbers(batches)) == 36
    assert batches.skip_log.reasons == {
        "file-0.mp4": "it ends early",
        "file-10.mp4": "it ends early",
    }


def test_more_than_half_stops_with_the_list():
    batches = loader(Numbered(4, act=lambda n: skip(1)(n) if n < 3 else None))
    with pytest.raises(Stop) as stop:
        list(batches)
    for part in ("3 of 4", "file-0.mp4: it ends early", "file-2.mp4: it ends early"):
        assert part in str(stop.value)
    half = loader(Numbered(4, act=lambda n: skip(1)(n) if n < 2 else None))
    assert numbers(half) == [2, 3]


@pytest.mark.parametrize(
    ("size", "every", "limits", "stops"),
    [
        (200, 20, {}, False),  # 10 of 200 is 5 %, not more
        (199, 20, {}, True),  # 10 of 199 is more
        (100, 12, {}, False),  # 9 %, but fewer than 10
        (100, 12, {"min_skipped": 9}, True),
        (199, 20, {"max_skipped_share": 0.06}, False),
        (199, 20, {"min_skipped": 11}, False),
    ],
)
def test_limits_of_what_may_be_skipped(size, every, limits, stops):
    batches = loader(Numbered(size, act=skip(every)), **limits)
    if stops:
        with pytest.raises(Stop, match="max_skipped_share"):
            list(batches)
    else:
        assert len(numbers(batches)) == size - len(batches.skip_log.reasons)


def test_a_long_list_is_cut():
    with pytest.raises(Stop) as stop:
        list(loader(Numbered(60, act=skip(1)), max_skipped_share=1.0))
    lines = str(stop.value).splitlines()
    assert len(lines) == 22 and lines[-1] == "  ... and 11 more"


def test_an_epoch_without_a_single_document_is_an_error():
    """Nothing is broken, but nothing is there: a trainer that counts steps would never end."""
    empty = Numbered(5, act=lambda n: Skipped("long.mp4", "no frame here", harmless=True))
    with pytest.raises(UserError, match="none of 5 documents can be used: none holds"):
        list(loader(empty))
    with pytest.raises(ValueError, match="no document"):
        loader(Numbered(0))


@pytest.mark.parametrize("name", ["context_length", "rows", "open_rows", "statistics_documents"])
def test_loading_refuses_zero(name):
    with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
        Loading(**{name: 0})


def test_documents_reach_a_spawned_worker_without_the_trainer():
    """Where processes are spawned, the documents are pickled, and their datamodule with them."""
    world = World(**codecs("audio", "video", "text"), train_scenes=2, loading=loading())
    world.setup()
    world.trainer = lambda: "cannot be pickled"  # like loggers and locks of a real one
    documents = world.documents("train")
    sent = pickle.loads(pickle.dumps(documents))
    assert all(map(same, all_documents(documents), all_documents(sent)))
    assert world.trainer is not None
