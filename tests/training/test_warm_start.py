"""What a new model takes of an old one: by name of the stream, by the bytes of a word, by place."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmpredict.model import HeadConfig, Predictor, PredictorConfig
from mmpredict.model.rotary import RotaryConfig
from mmpredict.schema import Clip, Layout, TextPiece
from mmpredict.sequence import interleave, pack
from mmpredict.tokens import Codecs, MelChunks, Patches, TextTokens, Vectors
from mmpredict.training.carried import Carried, pieces
from mmpredict.training.warm_start import Begun, Source, Start, differences, sizes

SMALL = HeadConfig(dim=32, depth=1, draws=1)
SOUND = MelChunks(sample_rate=8000, num_mels=8, hops=2)
OLD = Codecs(audio=SOUND, video=Patches(16, patch=8, fps=8), text=TextTokens())
CORPUS = ["the red ball rolls left", "the blue box falls", "a ball is left of the box"] * 3


def model(codecs: Codecs, seed: int = 0, **config: object) -> Predictor:
    heads = {s.name: SMALL for s in codecs.layout.streams if not s.is_discrete}
    torch.manual_seed(seed)
    sized = PredictorConfig(**{"dim": 32, "depth": 2, "num_heads": 2, "heads": heads} | config)
    made = Predictor(codecs.layout, sized)
    with torch.no_grad():  # what begins at 0 would not show whether it was taken
        for parameter in made.parameters():
            if parameter.std(correction=0) == 0:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def begun(new: Codecs, old: Codecs = OLD, **config: object):
    """A new model filled from an old one: (old, new, plan)."""
    first, second = model(old, 1, **config), model(new, 2, **config)
    plan = Carried(first.state_dict(), old).plan(second, new)
    second.load_state_dict(plan.tensors, strict=False)
    return first, second, plan


def test_the_same_model_is_taken_whole():
    first, second, plan = begun(OLD)
    assert plan.share == 1.0 and not plan.not_whole and not plan.left
    theirs = first.state_dict()
    assert all(torch.equal(x, theirs[name]) for name, x in second.state_dict().items())


@pytest.mark.parametrize("experts", ["none", "ffn"])
def test_rows_of_streams_follow_their_names(experts: str):
    """Sound goes, touch comes: as many streams, in other rows."""
    new = replace(OLD, audio=None, series={"touch": Vectors(2, 25.0)})
    first, second, plan = begun(new, experts=experts)
    for name in ("embed.stream.weight", "next_stream.weight", "next_stream.bias"):
        old, now = first.state_dict()[name], second.state_dict()[name]
        assert torch.equal(now[:2], old[1:]), name  # video, text
        assert plan.partly[name] == "1 of 3 streams are new"
    if experts == "ffn":
        name = "trunk.layers.0.feed_forward_norm.weight"
        assert plan.partly[name] == "1 of 3 streams are new"
    assert plan.share == 1.0, "what belongs to touch alone is no loss"
    assert any(name.startswith("heads.audio") for name in plan.left)
    assert plan.new_statistics == ("touch",)


def test_documents_without_the_new_stream_are_seen_as_before():
    """Bit by bit: what a new stream adds is silent where it does not come."""
    new = replace(OLD, series={"touch": Vectors(2, 25.0)})
    first, second, _ = begun(new)
    clip = Clip(
        frames_TCHW=torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8),
        times_s=torch.arange(6).double() / 8,
        texts=(TextPiece("the ball falls", 0.1, 0.6),),
    )
    seen = []
    for each, codecs in ((first, OLD), (second, new)):
        batch = pack([[interleave(codecs.encode(clip), codecs.layout)]], context_length=64)
        seen.append(each.eval()(batch, torch.Generator().manual_seed(0)))
    for modality, said in seen[0].streams.items():
        other = seen[1].streams[modality]
        for field in ("logits_MV", "mean_MPD", "denoised_RMPD"):
            a, b = getattr(said, field, None), getattr(other, field, None)
            assert (a is None) == (b is None) and (a is None or torch.equal(a, b))
    turns = seen[0].next_stream.logits_MV, seen[1].next_stream.logits_MV[:, :3]
    torch.testing.assert_close(*turns)  # one matrix with four rows in the place of three


def test_words_follow_their_bytes():
    old_text = TextTokens(kind="bpe", vocab_size=280).fit(CORPUS)
    new_text = TextTokens(kind="bpe", vocab_size=290).fit(["a green cup is right of the ball"] * 5)
    first, second, plan = begun(replace(OLD, text=new_text), replace(OLD, text=old_text))
    before, after = pieces(old_text), pieces(new_text)
    old, now = first.embed.tables["text"].weight, second.embed.tables["text"].weight
    shared = [word for word in after if word in before]
    assert {b"a", b" ", "end"} <= set(shared) and len(shared) < len(after)
    for word in shared:
        assert torch.equal(now[after.index(word)], old[before.index(word)]), word
    assert "pieces of text are new" in plan.partly["embed.tables.text.weight"]
    assert "embed.tables.text.weight" in plan.not_whole


def test_pieces_are_the_bytes_that_they_write():
    text = TextTokens(kind="bpe", vocab_size=290).fit([*CORPUS, "caf\u00e9 \u00fc \u4e2d"])
    table = pieces(text)
    for said in ("the red ball", "caf\u00e9 \u4e2d\n\t"):
        ids, _ = text.ids_of(said)
        assert b"".join(table[i] for i in ids) == said.encode()
    assert pieces(TextTokens())[65] == b"A" and pieces(TextTokens())[256] == "end"


def test_finer_frames_stretch_the_places():
    new = replace(OLD, video=Patches(32, patch=8, fps=8))
    first, second, plan = begun(new)
    name = "queries.video.place"
    assert plan.partly == {name: "stretched from (2, 2) to (4, 4)"} and plan.share == 1.0
    old = first.state_dict()[name].unflatten(0, (2, 2))
    now = second.state_dict()[name].unflatten(0, (4, 4))
    torch.testing.assert_close(now[0, 0], old[0, 0])  # corners stay corners
    torch.testing.assert_close(now[3, 3], old[1, 1])
    torch.testing.assert_close(now.mean((0, 1)), old.mean((0, 1)), atol=1e-5, rtol=1e-4)


def test_other_patches_begin_anew_and_cost_share():
    _, _, plan = begun(replace(OLD, video=Patches(16, patch=4, fps=8)))
    assert "embed.linear.video.weight" in plan.reshaped and plan.share < 0.95
    assert plan.new_statistics == ("video",)


def test_sound_of_another_meaning_is_measured_anew():
    new = replace(OLD, audio=replace(SOUND, sample_rate=16000))
    _, _, plan = begun(new)
    assert plan.new_statistics == ("audio",)
    assert "embed.linear.audio.weight" in plan.taken
    assert differences(OLD, new) == ["audio.sample_rate 8000 -> 16000"]


def source(config: PredictorConfig, codecs: Codecs = OLD) -> Source:
    return Source("old.ckpt", config, codecs, {}, Begun("old.ckpt", "0" * 64))


def test_sizes_are_the_checkpoints_where_the_recipe_is_silent():
    old = PredictorConfig(dim=64, depth=3, num_heads=4, horizons=(1, 2), heads={"audio": SMALL})
    found = sizes(PredictorConfig(attention="dense"), source(old), {"attention"}, OLD.layout)
    assert found == replace(old, attention="dense")
    asked = PredictorConfig(dim=64, window=32, heads={"video": SMALL})
    found = sizes(asked, source(old), {"dim", "window", "heads", "heads.video.dim"}, OLD.layout)
    assert found == replace(old, window=32, heads={"audio": SMALL, "video": SMALL})
    longer = PredictorConfig(rotary=RotaryConfig(max_ticks=9))
    assert sizes(longer, source(old), {"rotary.max_ticks"}, OLD.layout).rotary.max_ticks == 9


def test_settings_of_streams_that_are_gone_are_dropped():
    old = PredictorConfig(heads={"audio": SMALL, "video": SMALL})
    layout = Layout(tuple(s for s in OLD.layout.streams if s.name != "audio"))
    assert sizes(PredictorConfig(), source(old), (), layout).heads == {"video": SMALL}


def test_another_size_is_refused_with_a_table():
    old = PredictorConfig(dim=64, depth=3, num_heads=4)
    asked = PredictorConfig(dim=128, depth=3, num_heads=8)
    with pytest.raises(ValueError) as error:
        sizes(asked, source(old), {"dim", "depth", "num_heads"}, OLD.layout)
    lines = str(error.value).splitlines()
    assert lines[1:3] == [
        "dim: 64 in the checkpoint, 128 here",
        "num_heads: 4 in the checkpoint, 8 here",
    ]


@pytest.mark.parametrize(
    ("asked", "written", "takes"),
    [
        (TextTokens(), [], True),  # nothing said of text
        (TextTokens(kind="bpe"), ["data.init_args.text.kind"], True),
        (TextTokens(kind="bpe", vocab_size=280), ["data.init_args.text.vocab_size"], True),
        (TextTokens(kind="bpe", vocab_size=300), ["data.init_args.text.vocab_size"], False),
        (TextTokens(), ["data.init_args.text.kind"], False),  # bytes, on purpose
    ],
)
def test_the_vocabulary_is_the_checkpoints_unless_another_is_asked(asked, written, takes: bool):
    class Data:
        codecs = replace(OLD, text=asked)

    known = TextTokens(kind="bpe", vocab_size=280).fit(CORPUS)
    start = Start(source(PredictorConfig(), replace(OLD, text=known)), frozenset(written))
    found = start.data(Data()).codecs.text
    assert found == (known if takes else asked)
