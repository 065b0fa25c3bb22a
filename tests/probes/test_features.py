"""Laws of the features: each is what the model holds at that moment, and nothing from after it."""

import pytest
import torch

from mmpredict.probes import features as features_module
from mmpredict.probes.features import (
    CHUNKS,
    Scenes,
    layer_names,
    layer_outputs,
    moments_of,
    name_vectors,
    read_features,
    shuffled_order,
)
from mmpredict.probes.targets import NAMES
from mmpredict.schema import Modality
from mmpredict.sequence import interleave
from tests.generate.small import make_model

SCENES = Scenes("train", 3, 11, (5, 9, 13))


@pytest.fixture(scope="module")
def small():
    return make_model("audio", "video", "text", depth=2)


@pytest.fixture(scope="module")
def read(small):
    return read_features(*small, SCENES)


def row_of(codecs, index: int):
    clip = SCENES.record(index, codecs).clip
    streams = [t for t in codecs.encode(clip) if t.modality != Modality.TEXT]
    return interleave(streams, codecs.layout)


def test_the_last_layer_is_what_the_heads_read(small):
    model, codecs = small
    row = row_of(codecs, 0)
    with torch.no_grad():
        outputs = list(layer_outputs(model, row))
        assert len(outputs) == len(layer_names(model)) == 4
        assert torch.equal(outputs[0], model.embed(row))
        assert torch.equal(outputs[-1], model.hidden(row))


def test_what_is_taken_are_the_positions_of_the_moment(small, read):
    model, codecs = small
    row = row_of(codecs, 1)
    with torch.no_grad():
        x_LD = list(layer_outputs(model, row))[2][0]
    frames = (row.modality[0] == Modality.VIDEO).nonzero()[:, 0].view(-1, 4)
    taken = read.values_MSD[2][3 + 1].float()  # scene 1, second moment: frame 9
    assert taken.shape == (4 + CHUNKS + 1, 32)
    assert torch.allclose(taken[:4], x_LD[frames[9]], atol=5e-3)
    chunks = ((row.modality[0] == Modality.AUDIO) & (row.end_s[0] <= 9 / 8)).nonzero()[-CHUNKS:, 0]
    assert torch.allclose(taken[4 : 4 + CHUNKS], x_LD[chunks], atol=5e-3)
    assert torch.allclose(taken[-1], x_LD[frames[9][-1]], atol=5e-3)
    assert torch.equal(read.pooled(2, "last", "video")[4], taken[-1])
    assert torch.allclose(read.pooled(2, "mean", "audio")[4], taken[4:10].mean(0))
    assert torch.equal(read.pooled(2, "grid", "video")[4], taken[:4].flatten())


def test_nothing_after_the_moment_is_felt(small, read):
    """A shorter clip of the same scene: its features are the same up to its end."""
    alone = read_features(*small, Scenes("train", 3, 11, (5,)))
    assert torch.equal(alone.values_MSD[3], read.values_MSD[3][::3])
    model, codecs = small
    row = row_of(codecs, 0)
    cut = int((row.end_s[0] <= 5 / 8).sum())
    with torch.no_grad():
        whole = model.hidden(row)[0, :cut]
        changed = row.contents[int(Modality.VIDEO)].clone()
        changed[6 * 4 :] = 0  # frames after the moment
        other = model.hidden(
            type(row)(**{**vars(row), "contents": {**row.contents, 1: changed}, "places": None})
        )[0, :cut]
    assert torch.equal(whole, other)


def test_features_do_not_depend_on_what_is_read_together(small, read, monkeypatch):
    monkeypatch.setattr(features_module, "_ROW_POSITIONS", 1)
    alone = read_features(*small, SCENES)
    for a, b in zip(alone.values_MSD, read.values_MSD, strict=True):
        assert torch.allclose(a.float(), b.float(), atol=5e-3)


def test_two_readings_are_equal_also_by_way_of_a_file(small, read, monkeypatch):
    monkeypatch.setattr(features_module, "_IN_MEMORY", 0)
    again = read_features(*small, SCENES)
    assert again.kept is not None
    for a, b in zip(again.values_MSD, read.values_MSD, strict=True):
        assert torch.equal(a, b)


def test_captions_are_read_without_pictures_and_up_to_the_moment(small):
    model, codecs = small
    told = read_features(model, codecs, SCENES, given="captions")
    assert set(told.slots) == {"text", "last"}
    clip = SCENES.record(2, codecs).clip
    tokens = [t for t in codecs.encode(clip) if t.modality == Modality.TEXT]
    row = interleave(tokens, codecs.layout)
    with torch.no_grad():
        x_LD = model.hidden(row)[0]
    said = row.end_s[0] <= 9 / 8 + 1e-6
    assert 0 < int(said.sum()) < len(said)
    assert torch.allclose(told.pooled(3, "mean", "video")[7], x_LD[said].mean(0), atol=5e-3)


def test_a_single_frame_is_read_as_if_nothing_had_come_before(small):
    model, codecs = small
    alone = read_features(model, codecs, SCENES, given="last_frame")
    tokens = next(
        t for t in codecs.encode(SCENES.record(1, codecs).clip) if t.modality == Modality.VIDEO
    )
    one = type(tokens)(tokens.modality, tokens.contents[13:14], tokens.end_s[13:14])
    with torch.no_grad():
        x_LD = model.hidden(interleave([one], codecs.layout))[0]
    assert torch.allclose(alone.pooled(3, "grid", "video")[5], x_LD.flatten(), atol=5e-3)


def test_shuffling_keeps_every_frame_and_what_is_embedded_of_it(small, read):
    order = shuffled_order(16, (5, 9, 13), 0, 4)
    assert sorted(order.tolist()) == list(range(16))
    assert {int(order[m]) for m in (5, 9, 13)} == {5, 9, 13}
    assert torch.equal(order, shuffled_order(16, (5, 9, 13), 0, 4))
    assert any(
        not torch.equal(order, shuffled_order(16, (5, 9, 13), 0, index)) for index in range(3)
    )
    mixed = read_features(*small, SCENES, given="shuffled")
    here = mixed.slots["video"]
    assert torch.equal(mixed.values_MSD[0][:, here], read.values_MSD[0][:, here])
    assert not torch.allclose(
        mixed.values_MSD[3][:, here].float(), read.values_MSD[3][:, here].float(), atol=0.02
    )


def test_names_are_the_mean_of_their_words(small):
    model, codecs = small
    vectors = name_vectors(model, codecs)
    ids = codecs.text.ids_of(" red ball")[0]
    expected = model.embed.tables["text"].weight[torch.tensor(ids)].mean(0)
    assert torch.allclose(vectors[NAMES.index("red ball")], expected)
    assert vectors.shape == (40, 32)
    wordless = name_vectors(*make_model("video"))
    assert wordless.shape == (40, 13) and len(torch.unique(wordless, dim=0)) == 40


def test_moments_leave_something_before_and_after():
    assert moments_of(8.0, 3, 2.0) == (5, 9, 13)
    with pytest.raises(ValueError, match="20 moments.*16 frames"):
        moments_of(8.0, 20, 2.0)
