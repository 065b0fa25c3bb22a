"""Bad documents: named, counted, replaced, and too many of them stop the run."""

from __future__ import annotations

import pytest
import torch

from datamodules import Loading, Skipped
from datamodules.feed.reading import substitutes
from datamodules.feed.skips import SkipLog
from mmpredict.schema import Layout, Stop, StreamSpec, UserError
from tests.datamodules.small import Numbered, loader, numbers, same, waiting


def broken(*which: int, harmless: bool = False):
    def act(index: int) -> Skipped | None:
        if index not in which:
            return None
        return Skipped(f"file-{index}.mp4", "it ends early", harmless=harmless)

    return act


def all_seen(batches, passes: int) -> list[int]:
    seen = [n for _ in range(passes) for n in numbers(batches)]
    return seen + waiting(batches)


def test_a_broken_training_document_is_replaced_by_another():
    batches = loader(Numbered(40, act=broken(3, 17)), seed=0)
    seen = [n for n in all_seen(batches, 2) if n < 1000]
    assert len(seen) == 40 and set(seen) == set(range(40)) - {3, 17}
    assert batches.skip_log.reasons.keys() == {"file-3.mp4", "file-17.mp4"}
    assert batches.skip_log.substituted >= 2
    assert batches.skip_log.counts() == {"video/unreadable": 2}


def test_the_substitute_is_decided_by_the_number_alone():
    def run(workers: int):
        batches = loader(Numbered(40, act=broken(3, 17)), seed=0, workers=workers, timeout_s=60.0)
        found = [batch for _ in range(2) for batch in batches]
        batches.close()
        return found

    for alone, together in zip(run(0), run(2), strict=True):
        assert same(alone, together)
    assert substitutes(0, 3, 40) == substitutes(0, 3, 40) != substitutes(1, 3, 40)
    assert all(3 not in substitutes(e, 3, size) for e in range(50) for size in (1, 2, 5, 40))


def test_the_substitute_of_a_planned_row_fits_into_it():
    known = Numbered(60, act=broken(*range(0, 60, 6)), known=True)
    batches = loader(known, seed=0, max_skipped_share=1.0)
    seen = all_seen(batches, 2)
    assert batches.skip_log.substituted > 5
    assert not {n % 1000 for n in numbers(batches)} & set(range(0, 60, 6))
    assert len(seen) > 60


@pytest.mark.parametrize("harmless", [True, False])
def test_validation_and_empty_stretches_are_not_replaced(harmless):
    validation = loader(Numbered(40, act=broken(3, 17)))
    assert sorted(numbers(validation)) == [n for n in range(40) if n not in (3, 17)]
    batches = loader(
        Numbered(40, act=broken(3, 17, harmless=harmless)), seed=0, substitute=harmless
    )
    seen = sorted(n for n in all_seen(batches, 2) if n < 1000)
    assert seen == [n for n in range(40) if n not in (3, 17)]
    assert batches.skip_log.substituted == 0
    assert len(batches.skip_log.reasons) == (0 if harmless else 2)


def test_too_many_in_a_row_stop_the_run_with_their_names():
    data = Numbered(100, act=broken(*range(40, 60)))
    data.order = lambda seed, epoch, spread: torch.arange(100)
    batches = loader(data, seed=0, max_skipped_in_a_row=20, max_skipped_share=1.0)
    with pytest.raises(Stop) as stop:
        list(batches)
    message = str(stop.value)
    assert (
        "documents of 20 sources one after the other" in message
        and "max_skipped_in_a_row=20" in message
    )
    assert "document 59: it ends early" in message
    data = Numbered(100, act=broken(*range(40, 59)))
    data.order = lambda seed, epoch, spread: torch.arange(100)
    list(loader(data, seed=0, max_skipped_in_a_row=20, max_skipped_share=1.0))


def test_counts_are_by_modality_and_reason():
    log = SkipLog(Loading())
    log.num_sources = 100
    for source, kind in [
        ("a.mp4", "unreadable"),
        ("b.MKV", "limits"),
        ("c.wav", "unreadable"),
        ("d.mp4", "unreadable"),
        ("000001.tar!e/f.png", "hash"),
        ("noname", "empty"),
    ]:
        log.add(Skipped(source, "why", kind=kind))
    log.add(Skipped("a.mp4", "again"))
    assert log.counts() == {
        "audio/unreadable": 1,
        "image/hash": 1,
        "other/empty": 1,
        "video/limits": 1,
        "video/unreadable": 2,
    }


def test_a_long_film_with_a_broken_window_is_not_a_broken_film():
    """Five of twenty films lose a tenth each: half a film is lost, not five."""
    log = SkipLog(Loading(min_skipped=1))
    log.num_sources = 20
    for film in range(5):
        for _ in range(3):  # every epoch meets the same window
            log.add(Skipped(f"{film}.mp4", "damaged at 3 s", share=0.1))
    assert len(log.reasons) == 5
    with pytest.raises(Stop, match="6 of 20"):
        log.add(Skipped("5.mp4", "empty file"))


def test_long_documents_are_split_when_told():
    data = Numbered(6, length=lambda n: 10 + 9 * n)  # up to 55 positions in rows of 16
    batches = loader(data, too_long="split")
    assert sum(batch.num_tokens for batch in batches) == sum(10 + 9 * n for n in range(6))
    assert batches.skip_log.truncated == 0
    trained = loader(Numbered(6, length=lambda n: 10 + 9 * n), too_long="split", seed=1, rows=1)
    position_after = {}
    whole = []
    for batch in trained:
        whole.append(batch)
        position_after[len(whole)] = trained.position()
    again = loader(Numbered(6, length=lambda n: 10 + 9 * n), too_long="split", seed=1, rows=1)
    again.resume(position_after[4])
    assert all(map(same, whole[4:], list(again)))


def test_a_budget_bounds_every_row():
    text = Numbered(200, length=lambda n: 2 + n % 5)
    layout = Layout((StreamSpec(modality=2, name="text", vocab_size=10),))
    batches = loader(text, seed=0, rows=2, budget={"text": 12}, layout=layout)
    found = list(batches)
    assert all(int((row > 0).sum()) <= 12 for batch in found for row in batch.doc_id)
    assert max(int((row > 0).sum()) for batch in found for row in batch.doc_id) == 12
    assert batches.meter.figures()["efficiency"] <= 12 / 16
    with pytest.raises(ValueError, match="budget names sound; the streams of this run are text"):
        loader(text, budget={"sound": 3}, layout=layout)
    long = loader(Numbered(3, length=lambda n: 14), budget={"text": 12}, layout=layout)
    with pytest.raises(UserError, match="14 positions .* budget of a row is 12"):
        list(long)


def test_the_meter_counts_what_the_rows_hold():
    batches = loader(Numbered(60), seed=0)
    found = list(batches)
    tokens = sum(batch.num_tokens for batch in found)
    figures = batches.meter.figures()
    assert figures["efficiency"] == tokens / sum(batch.doc_id.numel() for batch in found)
    assert figures["share/2"] == 1.0
    rows = sum(batch.num_rows for batch in found)
    assert figures["documents_per_row"] == len(numbers(found)) / rows
