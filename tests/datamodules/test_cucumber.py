"""Spoken words: each name follows its sound, noise is as loud as asked, gaps are log-uniform, and
what counts is what the docstring says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer

from datamodules import Cucumber, Speech
from datamodules.cucumber import SYLLABLES, draw_words, vocabulary
from mmpredict.model import PredictorConfig
from mmpredict.model.fast_weights import FastWeightsConfig
from mmpredict.schema import Batch, Modality
from mmpredict.training import Pretrain
from mmpredict.training.recall_score import RecallScore
from tests.datamodules.small import all_documents, loading, same

pytest.importorskip("tokenizers")
AUDIO, TEXT = int(Modality.AUDIO), int(Modality.TEXT)
SPEECH = Speech(vocabulary=20, words=12)


def cucumber(**changes: object) -> Cucumber:
    sizes = {"train_documents": 6, "val_documents": 4, "test_documents": 4}
    how = {"speech": SPEECH, "num_mels": 8, "hops": 4, "loading": loading(context_length=64)}
    made = Cucumber(**how | sizes | changes)
    made.setup()
    return made


def names_of(data: Cucumber, row: Batch) -> list[str]:
    return data.codecs.text.text_of(row.contents[TEXT].tolist()).split()


def test_every_sound_is_followed_by_the_name_that_the_clip_gives_it():
    data = cucumber()
    documents = data.documents("test")
    for index, row in enumerate(all_documents(documents)):
        assert row.modality[0].tolist() == [AUDIO, TEXT] * 12
        assert documents.length(0, index) == 24
        clip = documents.clip(0, index)
        assert names_of(data, row) == [piece.text for piece in clip.texts]
        ends = [piece.end_s for piece in clip.texts]
        assert row.end_s[0, 1::2].tolist() == pytest.approx(ends)
        assert torch.equal(row.end_s[0, ::2], row.end_s[0, 1::2])
        assert torch.equal(row.prev_any[0, 1:], torch.arange(23)), "a name is told from its sound"
        assert clip.waveform_CS.shape == (1, 12 * 640)
        assert torch.equal(data.codecs.audio.encode(clip).contents[:, 0], row.contents[AUDIO])


def test_the_clean_sound_of_a_word_is_its_own_and_always_the_same():
    data = cucumber(speech=Speech(vocabulary=20, words=32, noisy_share=0.0, clean_db=60.0))
    sounds: dict[str, list[torch.Tensor]] = {}
    for row in all_documents(data.documents("train")):
        for name, mel in zip(names_of(data, row), row.contents[AUDIO].float(), strict=True):
            sounds.setdefault(name, []).append(mel)
    # The first spectra of a chunk still hear the end of the word before; loudness differs.
    middles = {n: torch.stack([x[24:] - x[24:].mean() for x in xs]) for n, xs in sounds.items()}
    spread = torch.stack([m.std(0).mean() for m in middles.values() if len(m) > 2]).mean()
    apart = torch.stack([m.mean(0) for m in middles.values()]).std(0).mean()
    assert len(middles) == 20 and apart > 5 * spread


def test_noise_is_as_loud_as_asked():
    """From the waveform alone: the power of noisy and clean words over many documents."""
    for noisy_db in (-6.0, 3.0):
        speech = Speech(vocabulary=20, words=12, noisy_db=noisy_db, gain_db=0.0)
        documents = cucumber(speech=speech, test_documents=40).documents("test")
        power: dict[bool, list[float]] = {False: [], True: []}
        for index in range(40):
            words = documents.clip(0, index).waveform_CS.reshape(12, -1)
            noisy = documents.document(0, index).loss_mask[0, 1::2]
            for word, is_noisy in zip(words, noisy.tolist(), strict=True):
                power[is_noisy].append(float(word.square().mean()))
        clean, noisy = (np.mean(power[k]) for k in (False, True))
        want = (1 + 10 ** (-noisy_db / 10)) / (1 + 10 ** (-speech.clean_db / 10))
        assert noisy / clean == pytest.approx(want, rel=0.05)


def test_all_names_count_in_training_and_noisy_ones_when_scored():
    data = cucumber()
    for row in all_documents(data.documents("train")):
        assert torch.equal(row.loss_mask, row.modality == TEXT)
    share = []
    for split in ("val", "test"):
        for row in all_documents(data.documents(split)):
            assert not row.loss_mask[row.modality == AUDIO].any()
            share.append(row.loss_mask[0, 1::2].float().mean())
    assert 0.3 < torch.stack(share).mean() < 0.7
    everything = cucumber(speech=Speech(vocabulary=20, words=12, noisy_share=1.0))
    assert everything.documents("test").document(0, 0).loss_mask.sum() == 12


def test_words_repeat_as_often_and_as_long_ago_as_asked():
    """Of the repeats, about as many lie 1 to 4 words back as 4 to 16 (log-uniform)."""
    random = np.random.default_rng(0)
    speech = Speech(vocabulary=500, words=65, repeat_share=0.8)
    ago, new = [], 0
    for _ in range(100):
        last: dict[int, int] = {}
        for now, word in enumerate(draw_words(speech, random).tolist()):
            if word in last:
                ago.append(now - last[word])
            else:
                new += 1
            last[word] = now
    assert new / 6500 == pytest.approx(0.2 + 0.8 / 65, abs=0.02)
    near, far = (sum(low <= a < high for a in ago) for low, high in ((1, 4), (4, 16)))
    assert 0.7 < near / far < 1.4
    assert sum(a >= 16 for a in ago) > 0.07 * len(ago)


def test_new_words_may_run_out():
    speech = Speech(vocabulary=3, words=50, repeat_share=0.0)
    words = draw_words(speech, np.random.default_rng(0))
    assert sorted(words[:3].tolist()) == [0, 1, 2] and len(words) == 50


def test_names_are_different_words_and_sounds_have_one_loudness():
    names, spoken = vocabulary(Speech(vocabulary=200), 8000, 0)
    assert len(set(names)) == 200 == len(spoken)
    assert all(name[:2] in SYLLABLES and name[2:] in SYLLABLES for name in names)
    np.testing.assert_allclose(np.square(spoken).mean(1), 1.0, rtol=1e-4)
    again, same_sounds = vocabulary(Speech(vocabulary=200), 8000, 0)
    assert names == again and np.array_equal(spoken, same_sounds)
    assert vocabulary(Speech(vocabulary=200), 8000, 1)[0] != names


def test_a_run_in_bfloat16_scores_the_noisy_words(tmp_path, capsys):
    data = cucumber()
    score = RecallScore(window=8)
    trainer = Trainer(
        max_steps=1,
        precision="bf16-mixed",
        limit_val_batches=0,
        callbacks=[score],
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    memory = FastWeightsConfig(every=1, num_heads=2, key_dim=8, value_dim=8)
    config = PredictorConfig(dim=32, depth=1, num_heads=2, window=8, fast_weights=memory)
    trainer.fit(Pretrain(data.layout, config), data)
    noisy = sum(int(row.loss_mask.sum()) for row in all_documents(data.documents("test")))
    assert score.results["all"]["answers"] == noisy
    assert {"new", "1-8"} <= set(score.results["by_distance"])
    assert "held-out test documents" in capsys.readouterr().out


def test_documents_are_a_pure_function_of_seed_split_epoch_and_index():
    one, again, other = cucumber(), cucumber(), cucumber(seed=1)
    first = all_documents(one.documents("train"), 3)
    assert all(map(same, first, all_documents(again.documents("train"), 3)))
    assert not any(map(same, first, all_documents(one.documents("train"), 4)))
    assert not any(map(same, first, all_documents(other.documents("train"), 3)))
    test = all_documents(one.documents("test"), 0)
    assert all(map(same, test, all_documents(one.documents("test"), 4)))


def test_test_documents_may_be_longer():
    data = cucumber(test_words=30)
    assert data.documents("test").length(0, 0) == 60
    assert data.documents("val").length(0, 0) == 24
    assert math.isclose(data.documents("test").clip(0, 0).texts[-1].end_s, 30 * 0.08)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"test_words": 33}, "33 words are 66 positions, data.loading.context_length is 64"),
        ({"speech": Speech(words=33)}, "33 words are 66 positions"),
    ],
)
def test_documents_longer_than_a_row_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        cucumber(**changes)


@pytest.mark.parametrize(
    "wrong", [{"words": 0}, {"vocabulary": 5000}, {"repeat_share": 1.1}, {"noisy_share": -0.1}]
)
def test_mistakes_of_speech_are_named(wrong):
    with pytest.raises(ValueError, match=r"data\.speech: .*" + next(iter(wrong))):
        Speech(**wrong)
