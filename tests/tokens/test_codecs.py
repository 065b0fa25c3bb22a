"""The encoders together: a clip there and back, streams missing, and plain types to keep."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from mmpredict.schema import Clip, Modality, TextPiece
from mmpredict.tokens import Codecs, MelChunks, Patches, TextTokens
from tests.builders import SUBSET_IDS, SUBSETS, generator

AUDIO = MelChunks(sample_rate=8000, num_mels=16)
VIDEO = Patches(size=(4, 8), patch=2)
ALL = Codecs(audio=AUDIO, video=VIDEO, text=TextTokens())


def clip_of(subset: set[int]) -> Clip:
    g = generator(0)
    fields: dict = {}
    if Modality.AUDIO in subset:
        fields |= {"waveform_CS": 0.1 * torch.randn(2, 1600, generator=g), "sample_rate": 8000}
    if Modality.VIDEO in subset:
        frames = torch.randint(256, (2, 3, 4, 8), generator=g).to(torch.uint8)
        fields |= {"frames_TCHW": frames, "times_s": torch.tensor([0.0, 0.125]).double()}
    if Modality.TEXT in subset:
        fields |= {"texts": (TextPiece("hello"),)}
    return Clip(**fields)


@pytest.mark.parametrize("subset", SUBSETS, ids=SUBSET_IDS)
def test_every_subset_of_streams_goes_there_and_back(subset: set[int]):
    clip = clip_of(subset)
    streams = ALL.encode(clip)
    assert [tokens.modality for tokens in streams] == sorted(subset)
    back = ALL.decode(streams)
    assert back.texts == clip.texts
    assert (back.waveform_CS is None) == (clip.waveform_CS is None)
    if clip.waveform_CS is not None:
        assert back.waveform_CS.shape == clip.waveform_CS.shape and back.sample_rate == 8000
    assert (back.frames_TCHW is None) == (clip.frames_TCHW is None)
    if clip.frames_TCHW is not None:
        assert torch.equal(back.frames_TCHW, clip.frames_TCHW)
        assert torch.equal(back.times_s, clip.times_s)


@pytest.mark.parametrize("subset", SUBSETS, ids=SUBSET_IDS)
def test_the_layout_is_that_of_the_codecs_and_other_streams_are_left_out(subset: set[int]):
    all_three = {"audio": AUDIO, "video": VIDEO, "text": TextTokens()}
    codecs = Codecs(**{k: v for k, v in all_three.items() if v.spec.modality in subset})
    assert [spec.modality for spec in codecs.layout.streams] == sorted(subset)
    encoded = codecs.encode(clip_of({0, 1, 2}))
    assert [tokens.modality for tokens in encoded] == sorted(subset)
    for tokens in encoded:
        spec = codecs.layout[tokens.modality]
        want = () if spec.is_discrete else (spec.positions_per_block, spec.width)
        assert tuple(tokens.contents.shape[1:]) == want


def test_no_stream_at_all_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Codecs()


def test_plain_form_survives_a_checkpoint_and_the_loss_of_the_file(tmp_path: Path):
    trained = TextTokens(kind="bpe", vocab_size=280).fit(["a ball", "a wall"])
    path = tmp_path / "tokenizer.json"
    path.write_text(trained.vocabulary, encoding="utf-8")
    from_file = TextTokens(kind="bpe", path=str(path))
    path.unlink()
    for text in (None, TextTokens(), trained, from_file):
        codecs = Codecs(audio=AUDIO, video=VIDEO, text=text)
        file = io.BytesIO()
        torch.save(codecs.to_plain(), file)
        file.seek(0)
        back = Codecs.from_plain(torch.load(file, weights_only=True))
        assert back == codecs and back.layout == codecs.layout
        if text is not None:
            assert back.text.ids_of("a ball falls") == text.ids_of("a ball falls")
