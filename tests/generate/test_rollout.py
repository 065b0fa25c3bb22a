"""Laws of the rollout: the grid goes on, the prompt stays, what does not exist cannot matter."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch

from mmpredict.generate import Rollout, rollout, rollouts
from mmpredict.generate import futures as room
from mmpredict.generate.row import Row, Ruler
from mmpredict.model.heads import pick
from mmpredict.schema import Clip, Modality, TextPiece, Tokens
from mmpredict.sequence import interleave
from tests.generate.small import make_model, make_prompt

NAMES = ("audio", "video", "text")
SUBSETS = [names for size in (1, 2, 3) for names in combinations(NAMES, size)]
FRAME_GRID = torch.arange(16).double() / 8
CHUNK_ENDS = 0.04 * torch.arange(26, 51).double()


def by_modality(result: Rollout) -> dict[int, Tokens]:
    return {tokens.modality: tokens for tokens in result.tokens}


def always(model, speaks: bool) -> None:
    """Make the head say that text is (or is not) next, whatever the row."""
    texts = [spec.modality == Modality.TEXT for spec in model.layout.streams]
    with torch.no_grad():
        model.next_stream.weight.zero_()
        model.next_stream.bias.copy_(torch.tensor([50.0 if t == speaks else -50.0 for t in texts]))


def same(a: Clip, b: Clip) -> bool:
    pairs = [(a.frames_TCHW, b.frames_TCHW), (a.waveform_CS, b.waveform_CS)]
    return a.texts == b.texts and all(x is y or torch.equal(x, y) for x, y in pairs)


def check_grid(result: Rollout, names: tuple[str, ...]) -> None:
    """One second went on after one second, without a gap or a double."""
    made = by_modality(result)
    if "video" in names:
        assert torch.allclose(result.clip.times_s, FRAME_GRID)
        assert len(made[Modality.VIDEO].end_s) == 8
    if "audio" in names:
        assert result.clip.waveform_CS.shape == (2, 16000)
        assert torch.allclose(made[Modality.AUDIO].end_s, CHUNK_ENDS)
        assert result.clip.waveform_CS.isfinite().all()


@pytest.mark.parametrize("names", SUBSETS, ids="-".join)
def test_models_of_all_subsets_go_on(names):
    model, codecs = make_model(*names)
    result = rollout(model, codecs, make_prompt(*names), seconds=1.0, steps=2, max_tokens=9)
    check_grid(result, names)
    assert result.prompt_end_s == pytest.approx(0.0 if names == ("text",) else 1.0)
    if names == ("text",):
        assert len(by_modality(result)[Modality.TEXT].contents) == 9
        assert result.clip.texts[0].text.startswith("a ball")


@pytest.mark.parametrize("names", [(), *SUBSETS], ids=lambda names: "-".join(names) or "nothing")
def test_prompts_with_all_subsets_of_the_streams(all_three, names):
    result = rollout(*all_three, make_prompt(*names), seconds=1.0, steps=2, max_text_run=2)
    clip, made = result.clip, by_modality(result)
    start = 1.0 if {"audio", "video"} & set(names) else 0.0
    assert result.prompt_end_s == pytest.approx(start)
    assert torch.allclose(made[Modality.VIDEO].end_s, start + FRAME_GRID[:8])
    assert torch.allclose(made[Modality.AUDIO].end_s, start + CHUNK_ENDS - 1.0)
    assert len(clip.times_s) == (16 if "video" in names else 8)
    assert clip.waveform_start_s == pytest.approx(0.0 if "audio" in names else start)


def test_the_prompt_is_unchanged(all_three):
    prompt = make_prompt(*NAMES)
    clip = rollout(*all_three, prompt, seconds=0.5, steps=2).clip
    assert torch.equal(clip.frames_TCHW[:8], prompt.frames_TCHW)
    assert torch.equal(clip.waveform_CS[:, :8000], prompt.waveform_CS)
    assert clip.texts[:1] == prompt.texts
    jump = (clip.waveform_CS[:, 8000] - clip.waveform_CS[:, 7999]).abs()
    assert jump.max() < 1e-6  # no click


def test_same_seed_same_bytes_other_seed_differs(all_three):
    def run(seed: int) -> Clip:
        return rollout(*all_three, make_prompt(*NAMES), seconds=0.25, steps=2, seed=seed).clip

    assert same(run(0), run(0))
    assert not torch.equal(run(0).frames_TCHW, run(1).frames_TCHW)
    torch.manual_seed(7)  # the global generator has no say
    assert same(run(0), run(0))


def test_what_stands_in_the_placeholder_does_not_matter(all_three, monkeypatch):
    def run() -> Clip:
        return rollout(*all_three, make_prompt(*NAMES), seconds=0.25, steps=2).clip

    def noise(shape, dtype):
        return torch.randint(1, 250, shape).to(dtype)

    with_zeros = run()
    monkeypatch.setattr(room, "blank", noise)
    assert same(with_zeros, run())


def test_a_step_agrees_with_the_training_forward(all_three):
    """The mean that a rollout adds is what the predictor's forward says of that block in a row."""
    model, codecs = all_three
    prompt = make_prompt("audio", "video")
    made = by_modality(
        rollout(model, codecs, prompt, seconds=0.125, streams={"video"}, temperature=0)
    )
    true = Tokens(
        Modality.VIDEO, torch.randint(256, (1, 4, 192)).byte(), torch.tensor([1.0]).double()
    )
    streams = codecs.encode(prompt)
    streams[1] = replace(
        streams[1],
        contents=torch.cat([streams[1].contents, true.contents]),
        end_s=torch.cat([streams[1].end_s, true.end_s]),
    )
    said = model(interleave(streams, model.layout)).streams[Modality.VIDEO].mean_MPD[-1]
    pixels = model.embed.standardise["video"].inverse(said).round().clamp(0, 255)
    assert (pixels - made[Modality.VIDEO].contents[0].float()).abs().max() <= 1


def test_temperature_zero_is_the_mean_whatever_the_seed(all_three):
    def run(seed: int) -> Clip:
        still = {"temperature": 0.0, "text_temperature": 0.0, "seed": seed}
        return rollout(*all_three, make_prompt(*NAMES), seconds=0.25, **still).clip

    assert same(run(0), run(1))


def test_text_to_video_and_sound(all_three):
    model, codecs = all_three
    always(model, speaks=False)
    result = rollout(model, codecs, make_prompt("text"), seconds=1.0, steps=2)
    assert torch.allclose(result.clip.times_s, FRAME_GRID[:8])
    assert result.clip.waveform_CS.shape == (2, 8000)
    assert result.clip.texts == (TextPiece("a ball"),)


def test_video_to_text(all_three):
    prompt = make_prompt("video")
    result = rollout(*all_three, prompt, seconds=1.0, streams={"text"}, max_tokens=20)
    (tokens,) = result.tokens
    assert tokens.modality == Modality.TEXT and 1 <= len(tokens.contents) <= 20
    assert (tokens.end_s == 1.0).all()
    assert result.clip.frames_TCHW is prompt.frames_TCHW and result.clip.waveform_CS is None


def test_text_alone_stops_at_the_end_of_a_piece(all_three, monkeypatch):
    model, codecs = all_three
    words = iter([*b"hit", codecs.text.end_id])
    monkeypatch.setattr(room, "pick", lambda logits, **_: torch.tensor([next(words)]))
    result = rollout(model, codecs, make_prompt("video"), seconds=1.0, streams={"text"})
    assert [piece.text for piece in result.clip.texts] == ["hit"]


def test_futures_that_have_finished_wait_for_the_others(all_three, monkeypatch):
    model, codecs = all_three
    end = codecs.text.end_id
    words = iter([[*b"ab"], [*b"ib"], [end, ord("c")], [end]])
    monkeypatch.setattr(room, "pick", lambda logits, **_: torch.tensor(next(words)))
    results = rollouts(
        model, codecs, make_prompt("video"), seconds=1.0, streams={"text"}, futures=2
    )
    assert [[piece.text for piece in r.clip.texts] for r in results] == [["ai"], ["bbc"]]


def test_min_p_leaves_out_the_unlikely_and_each_future_has_its_own_dice():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    dice = torch.Generator().manual_seed(0)
    drawn = pick(logits.expand(300, -1), min_p=0.2, generator=dice)
    assert set(drawn.tolist()) == {0, 1, 2}
    own = [torch.Generator().manual_seed(n) for n in range(8)]
    alone = [
        pick(logits[None], generator=torch.Generator().manual_seed(n)).item() for n in range(8)
    ]
    assert pick(logits.expand(8, -1), generator=own).tolist() == alone


def test_nothing_hangs_when_text_is_always_next(all_three):
    model, codecs = all_three
    always(model, speaks=True)
    result = rollout(model, codecs, make_prompt("audio"), seconds=0.12, steps=1, max_text_run=5)
    made = by_modality(result)
    assert len(made[Modality.AUDIO].end_s) == 3
    # Runs before 1.04, 1.08, 1.12; none between the chunk at 1 s and the frame of the same time.
    assert len(made[Modality.TEXT].end_s) == 15
    assert made[Modality.TEXT].end_s.unique().tolist() == pytest.approx([1.0, 1.04, 1.08])


def test_the_row_stands_in_the_order_of_the_training(all_three, monkeypatch):
    """Blocks come in the order in which interleave lays them, so nothing saw its own future."""
    model, codecs = all_three
    seen = []
    add = Row.add

    def watch(self, spec, end_s):
        seen.append((round(end_s * 1e6), int(spec.modality)))
        return add(self, spec, end_s)

    monkeypatch.setattr(Row, "add", watch)
    rollout(model, codecs, make_prompt("audio", "video"), seconds=0.5, steps=1, max_text_run=3)
    assert len(seen) > 16 and seen == sorted(seen)


def test_a_short_stream_is_caught_up_before_the_rest(all_three):
    prompt = make_prompt("audio", "video")
    prompt = replace(prompt, waveform_CS=prompt.waveform_CS[:, :4000])
    result = rollout(*all_three, prompt, seconds=0.25, streams={"audio", "video"}, steps=1)
    made = by_modality(result)
    assert torch.allclose(made[Modality.AUDIO].end_s, 0.04 * torch.arange(13, 33).double())
    assert torch.allclose(made[Modality.VIDEO].end_s, torch.tensor([1.0, 1.125]).double())


def test_the_window_slides_when_the_context_is_full(all_three):
    prompt = make_prompt(*NAMES)
    result = rollout(*all_three, prompt, seconds=1.0, steps=1, context_length=40, max_text_run=2)
    check_grid(result, NAMES)
    assert len([n for n in result.notices if "40 positions" in n]) == 1
    wide = rollout(*all_three, prompt, seconds=1.0, steps=1, max_text_run=2)
    assert wide.notices == ()


def test_when_the_context_is_full_the_oldest_blocks_go_and_half_is_free():
    layout = make_model(*NAMES)[1].layout
    audio, video = layout[Modality.AUDIO], layout[Modality.VIDEO]
    row, gone = Row(layout, {}, 20), []
    for _ in range(40):
        gone.append(row.make_room(audio, 0.0))
        row.add(audio, 0.04 * len(gone))
    assert [n for n in gone if n] == [10, 10] and gone[20] == 10
    row = Row(layout, {}, 20)
    row.add(video, 0.0)
    for _ in range(16):
        assert row.make_room(audio, 0.0) == 0
        row.add(audio, 0.04)
    assert row.make_room(video, 0.125) == 1 + 6  # half of 20 are audio; the old frame cannot stay
    row = Row(layout, {}, 20)
    for spec in [audio] * 8 + [video] + [audio] * 8:
        row.add(spec, 0.0)
    assert row.make_room(audio, 0.04) == 8  # the only frame stays, though 12 are more than half
    assert Row(layout, {}, None).make_room(video, 0.0) == 0


def test_places_on_the_time_axis_are_those_of_the_training():
    codecs = make_model(*NAMES)[1]
    texts = (TextPiece("so"), TextPiece("a ball", 0.1, 0.6), TextPiece("then"))
    prompt = replace(make_prompt(*NAMES), texts=texts)
    whole = interleave(codecs.encode(prompt), codecs.layout)
    ruler, start = Ruler(), 0
    while start < whole.modality.shape[1]:
        spec = codecs.layout[int(whole.modality[0, start])]
        seconds = ruler.place(spec, float(whole.end_s[0, start]))
        assert seconds == pytest.approx(float(whole.positions[0, start, 0]), abs=1e-6)
        start += spec.positions_per_block


def test_text_alone_is_continued_inside_its_last_piece():
    model, codecs = make_model("text")
    prompt = Clip(texts=(TextPiece("first"), TextPiece("a ball rol")))
    clip = rollout(model, codecs, prompt, seconds=0, max_tokens=4, text_temperature=0).clip
    assert clip.texts[0] == TextPiece("first") and clip.texts[1].text.startswith("a ball rol")
    assert rollout(model, codecs, Clip(), seconds=0, max_tokens=3).tokens[0].contents.shape == (3,)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"seconds": 0.0}, "seconds is 0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"streams": {"smell"}}, "smell; this model has audio, video, text"),
        ({"streams": set()}, "streams is empty"),
        ({"context_length": 6}, "context_length=6 is too short"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"steps": 0}, "steps=0"),
        ({"min_p": 2.0}, "min_p=2.0"),
    ],
)
def test_wrong_arguments_are_named(all_three, wrong, words):
    with pytest.raises(ValueError, match=words):
        rollout(*all_three, make_prompt("video"), **{"seconds": 1.0, **wrong})


def test_a_prompt_in_another_form_is_refused_with_the_remedy(all_three):
    wrong = replace(make_prompt("audio"), sample_rate=44100)
    with pytest.raises(ValueError, match="44100 Hz, the model takes 2 at 8000 Hz"):
        rollout(*all_three, wrong, seconds=1.0)


def test_a_stream_that_the_model_lacks_is_kept_and_told():
    model, codecs = make_model("video")
    prompt = make_prompt("audio", "video")
    result = rollout(model, codecs, prompt, seconds=0.25, steps=1)
    assert result.notices == ("the model has no audio: that of the prompt was not looked at",)
    assert result.clip.waveform_CS is prompt.waveform_CS
