"""Associative recall: every pair is told once and asked once, answers alone count, and the score by
distance is what a count by hand says."""

from __future__ import annotations

import json
import math

import pytest
import torch
from pytorch_lightning import Trainer

from datamodules import Recall
from datamodules.recall import word_tokens
from mmpredict.model import Predictor, PredictorConfig
from mmpredict.schema import Batch, Modality
from mmpredict.sequence import pack
from mmpredict.training import Pretrain
from mmpredict.training.recall_score import (
    RecallScore,
    RecallTally,
    distances,
    group_names,
    groups,
    summary,
)
from tests.datamodules.small import all_documents, loading, same

pytest.importorskip("tokenizers")
TEXT = int(Modality.TEXT)


def recall(**changes: object) -> Recall:
    how = {"pairs": (3, 5), "num_keys": 9, "num_values": 7, "train_documents": 24}
    sizes = {"val_documents": 4, "test_documents": 6, "loading": loading(context_length=40)}
    made = Recall(**how | sizes | changes)
    made.setup()
    return made


def words_of(data: Recall, row: Batch) -> list[str]:
    return data.codecs.text.text_of(row.contents[TEXT].tolist()).split()


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_pairs_are_told_and_then_asked_for(split):
    data = recall()
    documents = data.documents(split)
    sizes = set()
    for index, row in enumerate(all_documents(documents)):
        words = words_of(data, row)
        count = len(words) // 4
        sizes.add(count)
        assert len(words) == 4 * count == documents.length(0, index)
        pairs = list(zip(words[::2], words[1::2], strict=True))
        told = dict(pairs[:count])
        assert len(told) == len(set(told.values())) == count
        assert all(told[key] == value for key, value in pairs[count:])
        assert all(w[0] == "kv"[n % 2] for n, w in enumerate(words))
        counted = [w for w, counts in zip(words, row.loss_mask[0].tolist(), strict=True) if counts]
        assert counted == words[2 * count + 1 :: 2], "the answers, and they alone"
    assert sizes == {3, 5}


def test_what_is_asked_stood_near_and_far():
    """About as often 1 to 3 pairs ago as 4 to 15 (log-uniform), and which answers are left tells
    little: pairs are asked again."""
    data = recall(num_keys=32, num_values=32, pairs=(32,), loading=loading(context_length=128))
    ago, different = [], []
    for row in all_documents(data.documents("train")):
        keys = words_of(data, row)[::2]
        different.append(len(set(keys[32:])))
        for now in range(32, 64):
            ago.append(now - max(n for n in range(now) if keys[n] == keys[now]))
    near, middle, far = (
        sum(low <= a < high for a in ago) for low, high in ((1, 4), (4, 16), (16, 64))
    )
    assert 0.6 < near / middle < 1.6 and far > 0.15 * len(ago)
    assert 10 < sum(different) / len(different) < 28


def test_each_number_of_pairs_gets_its_share_of_the_answers():
    documents = recall(pairs=(1, 2, 6)).documents("train")
    pairs = [documents.length(epoch, index) // 4 for epoch in range(50) for index in range(24)]
    answers = torch.tensor([n * pairs.count(n) for n in (1, 2, 6)]).double()
    torch.testing.assert_close(
        answers / answers.sum(), torch.full_like(answers, 1 / 3), rtol=0.2, atol=0
    )


def test_documents_are_a_pure_function_of_seed_split_epoch_and_index():
    one, again, other = recall(), recall(), recall(seed=1)
    first = all_documents(one.documents("train"), 3)
    assert all(map(same, first, all_documents(again.documents("train"), 3)))
    assert not any(map(same, first, all_documents(one.documents("train"), 4)))
    assert not any(map(same, first, all_documents(other.documents("train"), 3)))
    test = all_documents(one.documents("test"), 0)
    assert all(map(same, test, all_documents(one.documents("test"), 4)))
    assert not any(map(same, test, first))


def test_more_pairs_may_be_tested_than_trained():
    data = recall(test_pairs=(7,))
    assert {data.documents("test").length(0, n) for n in range(6)} == {28}
    assert {data.documents("val").length(0, n) for n in range(4)} == {12, 20}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pairs": (8,)}, "number of keys and values, 9 and 7"),
        ({"pairs": ()}, "must lie between 1"),
        ({"test_pairs": (0,)}, "must lie between 1"),
        ({"loading": loading(context_length=19)}, "5 pairs are 20 positions"),
    ],
)
def test_mistakes_are_named(changes, says):
    with pytest.raises(ValueError, match=says):
        recall(**changes)


def test_a_word_is_a_token_and_an_unknown_one_is_a_question_mark():
    text = word_tokens(["bado", "kelu"])
    ids, ends = text.ids_of("kelu bado  kelu zz")
    assert ids == [2, 1, 2, 0] and ends == [4, 9, 15, 18]
    assert text.text_of(ids) == "kelu bado kelu ?"
    assert text.end_id == text.spec.vocab_size - 1 > 2 and text.is_fitted


def packed(data: Recall, rows: list[int], length: int = 40) -> Batch:
    documents = data.documents("test")
    return pack([[documents.document(0, n) for n in rows]], length)


def test_distances_are_those_of_a_count_by_hand():
    """In a row of two documents, which share words; padding and other streams have none."""
    data = recall(pairs=(3, 5))
    batch = packed(data, [0, 1])
    ids = batch.contents[TEXT].tolist()
    found = distances(batch, TEXT)[0].tolist()
    last: dict[tuple[int, int], int] = {}
    for place, (document, got) in enumerate(zip(batch.doc_id[0].tolist(), found, strict=True)):
        if document == 0:
            assert got == -1
            continue
        here = (document, ids[place])
        assert got == (place - last[here] if here in last else 0)
        last[here] = place
    assert (batch.doc_id[0] == 0).any() and len(last) == 16


def test_groups_end_at_the_window_and_its_doublings():
    distance = torch.tensor([0, 1, 15, 16, 17, 32, 33, 64, 65, 1024, 1025])
    found = groups(distance, 16)
    assert found.tolist() == [0, 1, 1, 1, 2, 2, 3, 3, 4, 7, 8]
    names = group_names(16, 9)
    assert names[:4] == ["new", "1-16", "17-32", "33-64"] and len(names) == 9
    assert groups(torch.tensor([7, 8, 14, 15]), 7).tolist() == [1, 2, 2, 3]


def test_a_model_that_knows_every_answer_scores_one_and_a_blind_one_nothing(monkeypatch):
    """Documents are counted apart, also those of one row; groups hold what they should."""
    data = recall(pairs=(3, 5))
    model = Predictor(data.layout, PredictorConfig(dim=32, depth=1, num_heads=2))
    batch = packed(data, [0, 1])
    answers = batch.contents[TEXT][model.counted(batch, TEXT)]
    truth = torch.nn.functional.one_hot(answers, data.layout[TEXT].vocab_size).float()
    for logits, right in ((truth, 1.0), (-truth, 0.0)):
        monkeypatch.setattr(model.heads["text"], "logits", lambda z, said=logits: said)
        tally = RecallTally(model, window=4)
        tally.add(batch)
        tally.add(batch)
        table = tally.table()
        assert table.shape[1] == 4 and table[1].sum(-1).tolist() == [3, 5, 3, 5]
        scores = summary(table, 4, by_answers=True)
        assert scores["all"]["accuracy"] == right and scores["all"]["answers"] == 16
        assert "new" not in scores["by_distance"], "every answer was told before"
        assert {k: v["answers"] for k, v in scores["by_answers"].items()} == {"3": 6, "5": 10}
        far = [v["answers"] for k, v in scores["by_distance"].items() if k != "1-4"]
        assert scores["beyond_window"]["answers"] == sum(far) > 0


def test_the_interval_is_over_documents_not_answers():
    """Nine documents all right and one all wrong: the share of a resample is that of documents."""
    table = torch.zeros(2, 10, 2)
    table[1, :, 1], table[0, :9, 1] = 1000, 1000
    score = summary(table, 4)["all"]
    assert score["accuracy"] == 0.9 and score["low"] == pytest.approx(0.7, abs=0.11)
    assert score["high"] == 1.0
    assert math.isnan(summary(table, 4)["beyond_window"]["accuracy"])


def test_a_run_logs_prints_and_writes_its_recall(tmp_path, capsys):
    """While it validates, at its end, and by `validate` and `test`."""
    data = recall(loading=loading(context_length=20))
    score = RecallScore(window=4, by_answers=True)
    trainer = Trainer(
        max_steps=2,
        val_check_interval=1,
        check_val_every_n_epoch=None,
        callbacks=[score],
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Pretrain(data.layout, PredictorConfig(dim=32, depth=1, num_heads=2))
    trainer.fit(model, data)
    assert 0 <= trainer.callback_metrics["val/recall/beyond_window"] <= 1
    written = json.loads((tmp_path / "recall.json").read_text())
    assert written["of"] == "held-out test documents" and written["window"] == 4
    assert written["all"]["answers"] == 3 * 3 + 3 * 5, "six test documents, three and five pairs"
    assert written["all"]["accuracy"] == score.results["all"]["accuracy"]
    assert "answers that are right" in capsys.readouterr().out
    trainer.validate(model, data, verbose=False)
    assert json.loads((tmp_path / "recall.json").read_text())["all"]["answers"] == 2 * 3 + 2 * 5
    trainer.test(model, data, verbose=False)
    again = json.loads((tmp_path / "recall.json").read_text())
    assert again == written, "the same documents, the same weights"
