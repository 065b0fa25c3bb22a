"""What is shown is what the encoders would make of it, up to the moment of the question."""

from __future__ import annotations

import pytest
import torch

from mmpredict.media import write_clip, write_wav
from mmpredict.probes.evidence import (
    PAUSE_S,
    REACTION_S,
    EvidenceError,
    Footage,
    check_streams,
    possible_variants,
    question_and_answer,
    spoken,
)
from mmpredict.probes.items import Evidence, Files
from mmpredict.schema import Modality, UserError
from mmpredict.world import Condition, Film, Take, draw_scene
from mmpredict.world.captions import WORD_S
from tests.generate.small import make_codecs, make_prompt
from tests.probes.small_suite import choice, suite, take

ALL = ("audio", "video", "text")


def test_a_take_is_filmed_as_the_checkpoint_sees_it():
    codecs = make_codecs(*ALL)
    shown = Footage({"a": take()}, codecs).shown(Evidence("a"), "video+audio")
    film = Film((16, 16), fps=8.0, sample_rate=8000)
    want = codecs.encode(take().record(film).clip)
    got = {t.modality: t for t in shown.streams}
    assert [t.modality for t in shown.streams] == [Modality.AUDIO, Modality.VIDEO]
    for tokens in want:
        assert torch.equal(got[tokens.modality].contents, tokens.contents)
        assert torch.equal(got[tokens.modality].end_s, tokens.end_s)
    assert shown.end_s == take().stage.seconds


def test_frames_that_begin_before_and_sound_that_ends_by_the_moment():
    footage = Footage({"a": take()}, make_codecs(*ALL))
    sound, frames = footage.shown(Evidence("a", 0.5), "video+audio").streams
    assert frames.end_s.tolist() == [0.0, 0.125, 0.25, 0.375]
    assert len(sound.end_s) == 12 and sound.end_s[-1] == pytest.approx(0.48)
    alone = Footage({"a": take()}, make_codecs(*ALL), withheld="absent")
    (only,) = alone.shown(Evidence("a", 0.5), "video").streams
    assert torch.equal(only.contents, frames.contents)


def test_streams_that_nobody_asks_for_are_not_made(monkeypatch):
    films = []
    monkeypatch.setattr(Take, "record", lambda self, film: films.append(film) or 1 / 0)
    for variants in (["video"], ["audio"]):
        with pytest.raises(ZeroDivisionError):
            Footage({"a": take()}, make_codecs(*ALL), variants).whole("a")
    assert [(film.frames, film.sound) for film in films] == [(True, False), (False, True)]
    Footage({"a": take()}, make_codecs(*ALL)).shown(Evidence("a", 0.5, ("a",)), "text")


def test_words_stand_in_time_as_in_the_world_s_own_dialogues():
    """The longest pieces of a dialogue of the world, and ours of the same words, are alike."""
    scene = draw_scene(3, split="train", condition=Condition(speech="dialogue"))
    recording = scene.record(16, sound=False)
    texts = recording.clip.texts
    asked, said = next(
        (a, b) for a, b in zip(texts, texts[1:], strict=False) if a.text.endswith("?")
    )
    question = next(q for q in recording.questions if q.text == asked.text)
    footage = Footage({"a": take()}, make_codecs(*ALL))
    shown = footage.shown(Evidence("a", question.time_s, ("",)), "text")
    (ours,), answer = question_and_answer(shown, asked.text, said.text)
    assert ours.end_s - ours.start_s == pytest.approx(asked.end_s - asked.start_s)
    assert answer.start_s - ours.end_s == pytest.approx(said.start_s - asked.end_s)
    assert ours.start_s - question.time_s == pytest.approx(REACTION_S)
    assert ours.start_s <= asked.start_s


def test_told_lines_follow_each_other_and_the_question_waits_for_them():
    footage = Footage({"a": take()}, make_codecs(*ALL))
    lines = ("a red ball", "it rolls left")
    pieces = spoken(lines, 0.0)
    assert [p.start_s for p in pieces] == pytest.approx([0, 3 * WORD_S + PAUSE_S])
    early, late = (footage.shown(Evidence("a", s, lines), "text") for s in (0.1, 1.0))
    assert early.end_s == pieces[-1].end_s and late.end_s == 1.0
    untimed = footage.shown(Evidence("", None, lines), "text")
    assert untimed.end_s is None and bool(untimed.streams[0].end_s.isnan().all())
    asked, said = question_and_answer(untimed, "where?", "here")
    assert asked[0].start_s is None and said.start_s is None


def files(tmp_path) -> dict[str, Files]:
    prompt = make_prompt("audio", "video")
    write_clip(tmp_path / "film.mp4", prompt)
    write_wav(tmp_path / "sound.wav", prompt.waveform_CS, 8000)
    silent = make_prompt("video")
    write_clip(tmp_path / "silent.mp4", silent)
    (tmp_path / "damaged.mp4").write_bytes(b"no film at all")
    for number in range(2):
        write_image(tmp_path / f"{number}.png", number)
    film, sound = str(tmp_path / "film.mp4"), str(tmp_path / "sound.wav")
    return {
        "film": Files(film),
        "part": Files(film, start_s=0.5, end_s=0.75),
        "pair": Files(str(tmp_path / "silent.mp4"), sound),
        "silent": Files(str(tmp_path / "silent.mp4")),
        "pictures": Files(images=tuple(str(tmp_path / f"{n}.png") for n in range(2))),
        "missing": Files(str(tmp_path / "nowhere.mp4")),
        "damaged": Files(str(tmp_path / "damaged.mp4")),
    }


def write_image(path, number: int) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    lines = b"".join(b"\x00" + bytes([100 * number]) * 48 for _ in range(16))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(lines))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + data + chunk(b"IEND", b""))


def test_files_are_shown_like_takes(tmp_path):
    footage = Footage(files(tmp_path), make_codecs(*ALL), withheld="absent")
    sound, frames = footage.shown(Evidence("film"), "video+audio").streams
    assert len(frames.end_s) == 8 and len(sound.end_s) == 25
    (part,) = footage.shown(Evidence("part"), "video").streams
    assert part.end_s.tolist() == [0.0, 0.125]
    assert torch.equal(part.contents, frames.contents[4:6])
    beside, _ = footage.shown(Evidence("pair"), "video+audio").streams
    assert len(beside.end_s) == 25
    pictures = footage.shown(Evidence("pictures"), "video")
    assert pictures.streams[0].contents.float().mean((1, 2)).tolist() == [0.0, 100.0]
    assert pictures.end_s == 0.25


@pytest.mark.parametrize(
    ("source", "variant", "words"),
    [
        ("missing", "video", "source 'missing': .*nowhere.mp4"),
        ("damaged", "video", "source 'damaged': .*damaged.mp4"),
        ("silent", "video+audio", "source 'silent' has no audio"),
        ("film", "text", "source 'film': nothing of it is told"),
        ("pictures", "audio", "source 'pictures' has no audio"),
    ],
)
def test_what_cannot_be_shown_is_named(tmp_path, source, variant, words):
    footage = Footage(files(tmp_path), make_codecs(*ALL))
    for _ in range(2):  # the second time from memory
        with pytest.raises(EvidenceError, match=words):
            footage.shown(Evidence(source), variant)
    if source == "silent":
        assert footage.shown(Evidence(source), "video").streams


def test_a_checkpoint_that_lacks_a_stream():
    items = [choice(0, "where?", ("here", "there")), *suite(1).items]
    check_streams(make_codecs(*ALL), items, ["text", "video+audio"])
    with pytest.raises(
        UserError, match="needs video; .* only audio, text: .*--evidence text,audio"
    ):
        check_streams(make_codecs("audio", "text"), items, ["text", "video"])
    with pytest.raises(UserError, match="needs text; .* only video"):
        check_streams(make_codecs("video"), items, ["video"])
    assert possible_variants(make_codecs("video", "text"), items) == ("text", "video")
    assert possible_variants(make_codecs("video"), items) == ("video",)  # voe needs no words
