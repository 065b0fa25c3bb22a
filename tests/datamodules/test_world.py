"""The world as documents, the statistics of its streams, and what every datamodule promises."""

from __future__ import annotations

import pytest
import torch

from datamodules import AudioVisual, Documents, Loading, Mixture, Skipped, Text, World
from datamodules.base import measure
from mmpredict.schema import Stop
from mmpredict.tokens import Codecs, Patches, TextTokens
from tests.datamodules.small import (
    AUDIO,
    FRAMES,
    SOUND,
    STREAMS,
    SUBSET_IDS,
    SUBSETS,
    TEXT,
    VIDEO,
    WORDS,
    Numbered,
    all_documents,
    codecs,
    loading,
    same,
)


def world(*streams: str, **options: object) -> World:
    how = {"train_scenes": 6, "val_scenes": 2, "test_scenes": 2, "loading": loading()}
    made = World(**codecs(*streams or STREAMS), **how | options)
    made.setup()
    return made


@pytest.mark.parametrize("subset", SUBSETS, ids=SUBSET_IDS)
def test_every_subset_of_the_streams(subset):
    data = World(**codecs(*subset), train_scenes=2, loading=loading())
    names = [spec.name for spec in data.layout.streams]
    assert set(names) == subset, "the layout is known before setup"
    data.setup()
    assert data.layout == data.codecs.layout and [s.name for s in data.layout.streams] == names
    batch = next(iter(data.train_dataloader()))
    assert {data.layout[m].name for m in batch.contents} == subset
    assert set(batch.modality[batch.doc_id > 0].tolist()) == set(batch.contents)


def test_the_layout_of_a_vocabulary_that_is_yet_to_be_trained():
    data = World(None, None, TextTokens(kind="bpe", vocab_size=280), train_scenes=3)
    before = data.layout
    data.setup()
    assert data.layout == before and data.codecs.text.is_fitted


def test_an_endless_world_is_new_in_every_epoch_and_the_same_in_every_run():
    data, again = world("audio", "video"), world("audio", "video")
    first, second = (all_documents(data.documents("train"), e) for e in (0, 1))
    assert all(map(same, second, all_documents(again.documents("train"), 1)))
    assert not any(same(a, b) for a in first for b in second)
    assert [a.contents[VIDEO].float().mean() for a in first] == [
        a.contents[VIDEO].float().mean() for a in all_documents(again.documents("train"))
    ]


def test_a_repeated_world_is_the_same_in_every_epoch():
    documents = world("audio", "video", repeat=True).documents("train")
    assert all(map(same, all_documents(documents, 0), all_documents(documents, 3)))


def test_another_seed_is_another_world():
    one, other = (all_documents(world(seed=s).documents("train")) for s in (0, 1))
    assert not any(map(same, one, other))


def test_splits_share_no_scene():
    data = world(val_scenes=6, test_scenes=6)
    scenes = {
        split: {data.scene(split, 0, n).name for n in range(6)}
        for split in ("train", "val", "test")
    }
    assert len(set.union(*scenes.values())) == 18


def test_an_unknown_family_or_split_is_said_at_once():
    with pytest.raises(ValueError, match="'flying' is not one of"):
        World(families=("flying",))
    with pytest.raises(ValueError, match="'test_moon' is not one of"):
        World(test_split="test_moon")


def test_the_vocabulary_comes_from_training_captions_alone():
    data = World(None, None, TextTokens(kind="bpe", vocab_size=300), train_scenes=5, val_scenes=50)
    train = [
        piece.text
        for n in range(5)
        for piece in data.scene("train", 0, n).record(frames=False, sound=False).clip.texts
    ]
    assert list(data.corpus()) == train


def test_a_clip_that_no_row_can_hold_names_numbers_and_remedies():
    """16 frames of 4 patches and 50 chunks of sound."""
    with pytest.raises(ValueError) as refusal:
        world("audio", "video", loading=loading(context_length=113))
    for part in ("2 s", "114 positions", "context_length is 113", "raise it", "video.fps"):
        assert part in str(refusal.value)
    world("audio", "video", loading=loading(context_length=114))


def test_the_defaults_fit_together(tmp_path):
    """Two seconds of default frames and sound fit into a default row, with room for captions."""
    for data in (World(train_scenes=1), AudioVisual(str(tmp_path))):
        data.check_context(2.0)
    assert Loading().context_length >= 1024 + 50 + 256


# Statistics


def slow_statistics(rows: list, modality: int, groups_D: torch.Tensor) -> tuple[list, list]:
    """Mean and deviation of every group, from all its values laid end to end."""
    values_ND = torch.cat([row.contents[modality].double() for row in rows if row is not None])
    mean, std = [], []
    for group in groups_D.tolist():
        pool = values_ND[:, groups_D == group].flatten()
        mean.append(pool.mean().item())
        std.append(pool.std(correction=0).item())
    return mean, std


@pytest.mark.parametrize(("modality", "codec"), [(AUDIO, SOUND), (VIDEO, FRAMES)])
def test_statistics_are_those_of_the_pooled_values(modality, codec):
    data = world(loading=loading(statistics_documents=6))
    found = data.statistics()
    rows = all_documents(data.documents("train"))
    mean, std = slow_statistics(rows, modality, codec.groups_D)
    assert torch.allclose(found.mean[modality], torch.tensor(mean), rtol=1e-5, atol=1e-5)
    assert torch.allclose(found.std[modality], torch.tensor(std), rtol=1e-5, atol=1e-5)
    groups = {
        g: found.mean[modality][codec.groups_D == g].unique() for g in codec.groups_D.tolist()
    }
    assert all(len(values) == 1 for values in groups.values()), "one number per channel or bin"
    assert len(found.mean[modality].unique()) > 1
    assert TEXT not in found.mean
    assert data.statistics() is found, "measured once"


class _Rare(Documents):
    """Sound nearly everywhere; frames in the last document alone, where it stands."""

    def __init__(self, size: int, with_frames: bool = True) -> None:
        data = world("audio", "video", train_scenes=1)
        both = data.documents("train").document(0, 0)
        data.codecs = Codecs(audio=SOUND)
        self.sound, self.both, self.size = data.documents("train").document(0, 0), both, size
        self.with_frames, self.asked = with_frames, []

    def __len__(self) -> int:
        return self.size

    def name(self, index: int) -> str:
        return f"rare {index}"

    def document(self, epoch: int, index: int):
        self.asked.append(index)
        if index % 11 == 5:
            return Skipped("x.mp4", "broken")
        return self.both if self.with_frames and index == self.size - 1 else self.sound


def test_statistics_look_further_for_a_rare_stream_but_not_for_ever():
    both = Codecs(audio=SOUND, video=FRAMES)
    documents = _Rare(37)
    found = measure(documents, both, loading(statistics_documents=5))
    mean, _ = slow_statistics([documents.both], VIDEO, FRAMES.groups_D)
    assert torch.allclose(found.mean[VIDEO], torch.tensor(mean), rtol=1e-4)
    assert len(set(documents.asked)) == len(documents.asked) <= 37
    assert 36 not in documents.asked[:5], "or this test says nothing"

    silent = _Rare(1000, with_frames=False)
    found = measure(silent, both, loading(statistics_documents=5))
    assert torch.equal(found.mean[VIDEO], torch.zeros(FRAMES.spec.width))
    assert torch.equal(found.std[VIDEO], torch.ones(FRAMES.spec.width))
    assert len(silent.asked) <= 40


def test_statistics_are_not_those_of_the_first_files():
    """Files are sorted by name, and neighbours are alike."""
    documents = _Rare(1000, with_frames=False)
    measure(documents, Codecs(audio=SOUND), loading(statistics_documents=20))
    assert len(documents.asked) == 20 and max(documents.asked) > 500


def test_statistics_of_text_are_empty():
    found = measure(Numbered(3), Codecs(text=WORDS), loading())
    assert found.mean == {} and found.std == {}


# What all of them promise


def test_documents_need_setup(tmp_path):
    for data in (Text(), AudioVisual(str(tmp_path))):
        with pytest.raises(RuntimeError, match="setup"):
            data.documents("train")


def test_a_frame_size_that_is_no_multiple_of_the_patch():
    with pytest.raises(ValueError, match="size=30 is not a multiple of video.patch=4"):
        Patches(size=30, patch=4)


def test_too_many_broken_files_stop_the_run_with_a_code_of_their_own():
    """The front door prints a Stop whole and leaves with its code, also in mid-training."""
    data = Mixture([world()], [1.0], loading=loading())
    data.skip_log.num_sources = 1
    with pytest.raises(Stop) as stop:
        data.skip_log.add(Skipped("a.mp4", "broken"))
    assert stop.value.code == 65
