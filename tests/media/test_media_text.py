"""Text files, neat and odd, become the pieces that they mean."""

from __future__ import annotations

import json

import pytest

from mmpredict.media import (
    Limits,
    MediaBytes,
    MediaError,
    read_text,
    write_srt,
    write_text,
)
from mmpredict.schema import Clip, TextPiece
from mmpredict.tokens.text import TextTokens


def read(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(p.text, p.start_s, p.end_s) for p in read_text(path)]


def test_txt_is_paragraphs(tmp_path):
    found = read(tmp_path, "a.txt", b"\xef\xbb\xbfone\r\nstill one\r\n \r\n\r\ntwo\r\n")
    assert found == [("one\nstill one", None, None), ("two", None, None)]
    assert read(tmp_path, "b.txt", "") == []
    assert read(tmp_path, "c.txt", "w\u00f6rd".encode("utf-16")) == [("w\u00f6rd", None, None)]


def test_txt_round_trip(tmp_path):
    texts = [TextPiece("one\nline two"), TextPiece("three", 0.0, 1.0), TextPiece(" ")]
    write_text(tmp_path / "a.txt", texts)
    assert read_text(tmp_path / "a.txt") == (TextPiece("one\nline two"), TextPiece("three"))


def test_txt_keeps_its_text_to_the_blank(tmp_path):
    verse = "    To be,\n  or not\tto be"
    exotic = "\u00a0a\x0cb\u2028c\u00a0"
    found = read(tmp_path, "a.txt", f"\n\n{verse}  \n \t \n\n{exotic}\n")
    assert [text for text, _, _ in found] == [verse, exotic]
    write_text(tmp_path / "b.txt", [TextPiece(verse), TextPiece(exotic)])
    assert [p.text for p in read_text(tmp_path / "b.txt")] == [verse, exotic]


SPECIAL = "<vid> <eos></s>[PAD]<|endoftext|><pad><s> <|audio|> <image>"


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_special_tokens_of_others_stay_text(kind, tmp_path):
    tokens = TextTokens(kind=kind, vocab_size=300).fit(["<vid> the <eos> words </s>"] * 5)
    odd = f"{SPECIAL}\0\ufeff \u202e {chr(0x10FFFF)} e\u0301"
    rows = {
        "a.txt": odd,
        "a.jsonl": json.dumps({"text": odd}),
        "a.json": json.dumps([{"text": odd, "start": 0, "end": 1}]),
    }
    for name, content in rows.items():
        ((text, _, _),) = read(tmp_path, name, content)
        assert text == odd
        encoded = tokens.encode(Clip(texts=(TextPiece(text),)))
        assert encoded.contents.tolist().count(tokens.end_id) == 1
        assert encoded.contents[-1] == tokens.end_id
        assert tokens.decode(encoded).texts[0].text == odd


def test_a_line_of_a_megabyte_is_read_whole(tmp_path):
    line = "0123456789 <vid>" * 65_536
    for name, content in (
        ("a.txt", line),
        ("a.jsonl", json.dumps({"text": line})),
        ("a.srt", f"1\n00:00:00,000 --> 00:00:01,000\n{line}\n"),
    ):
        ((text, _, _),) = read(tmp_path, name, content)
        assert text == line
    tokens = TextTokens()
    assert tokens.text_of(tokens.ids_of(line)[0]) == line


def test_lone_surrogates_are_kept_or_refused(tmp_path):
    ((text, _, _),) = read(tmp_path, "a.jsonl", '{"text": "a\\ud800b"}')
    assert text == "a\ud800b"
    clip = Clip(texts=(TextPiece(text),))
    assert TextTokens().decode(TextTokens().encode(clip)).texts == clip.texts
    bpe = TextTokens(kind="bpe", vocab_size=300).fit(["a b"])
    with pytest.raises(ValueError, match="lone surrogate"):
        bpe.encode(clip)
    with pytest.raises(MediaError, match="not utf-8: byte 0xed"):
        read(tmp_path, "a.txt", b"a\xed\xa0\x80b")


def test_marks_of_byte_order(tmp_path):
    for encoding in ("utf-8-sig", "utf-16"):
        assert read(tmp_path, "a.txt", "w\u00f6rd \ufeff x".encode(encoding))[0][0] == (
            "w\u00f6rd \ufeff x"
        )
    with pytest.raises(MediaError, match="not utf-16"):
        read(tmp_path, "a.txt", b"\xff\xfea")


def test_text_may_lie_in_memory():
    assert read_text(MediaBytes("x/a.jsonl", b'{"text": "hi"}')) == (TextPiece("hi"),)
    with pytest.raises(MediaError, match="x/a.jsonl: line 1: not JSON"):
        read_text(MediaBytes("x/a.jsonl", b"hi"))
    with pytest.raises(MediaError, match="Limits.max_bytes"):
        read_text(MediaBytes("a.txt", b"hello"), Limits(max_bytes=4))


def test_srt_round_trip_to_the_millisecond(tmp_path):
    texts = (TextPiece("a < b & c", 0.0, 1.2345), TextPiece("two\nlines", 0.5, 3723.25))
    write_srt(tmp_path / "a.srt", [*texts, TextPiece("untimed")])
    back = read_text(tmp_path / "a.srt")
    assert [p.text for p in back] == [p.text for p in texts]
    assert back[0].end_s == pytest.approx(1.234, abs=0.001) and back[1].end_s == 3723.25


def test_srt_with_odd_rows(tmp_path):
    odd = (
        "\ufeff1\r\n00:00:01,500 --> 00:00:02.5 X1:40 Y1:20\r\n<i>Hello</i> {\\an8}you <3\r\n"
        "2\r\n00:00:02,000-->00:00:04,000\r\n- overlapping\r\n- 42\r\n\r\n\r\n"
        "00:01:00,000 --> 00:01:01,000\r\nno index &amp; late\r\n\r\n"
        "4\r\n00:00:05,0 --> 00:00:05,0\r\n\r\n"
        "5\r\n0:0:6 --> 0:0:7\r\nno decimals\r\n"
    )
    assert read(tmp_path, "a.srt", odd) == [
        ("Hello you <3", 1.5, 2.5),
        ("- overlapping\n- 42", 2.0, 4.0),
        ("no index & late", 60.0, 61.0),
        ("no decimals", 6.0, 7.0),
    ]


def test_vtt_with_notes_styles_ids_and_settings(tmp_path):
    vtt = (
        "WEBVTT - title\nKind: captions\n\nSTYLE\n::cue { color: red }\n\nNOTE 00:00 --> never\n\n"
        "intro\n00:01.000 --> 00:02.000 align:start position:0%\n"
        "<v Anna>Hi <00:01.500><c>there</c>\n\n"
        "01:00:00.250 --> 01:00:01.250\nlate\n"
    )
    assert read(tmp_path, "a.vtt", vtt) == [("Hi there", 1.0, 2.0), ("late", 3600.25, 3601.25)]
    assert read(tmp_path, "b.vtt", "WEBVTT\n") == []


def test_json_layouts(tmp_path):
    word = [{"word": " Hi", "start": 0, "end": 0.5}, {"word": "you", "start": 0.5, "end": 1}]
    segment = {"id": 0, "text": " Hi you", "start": 0.0, "end": 1.0}
    words = [("Hi", 0.0, 0.5), ("you", 0.5, 1.0)]
    for content, wanted in (
        (
            [{"text": "a", "start": 1, "end": 2}, {"text": "b"}],
            [("a", 1.0, 2.0), ("b", None, None)],
        ),
        ({"words": word}, words),
        ({"text": "Hi you", "segments": [segment]}, [("Hi you", 0.0, 1.0)]),
        ({"text": "Hi you", "segments": [segment | {"words": word}], "language": "en"}, words),
        ({"segments": []}, []),
    ):
        assert read(tmp_path, "a.json", json.dumps(content)) == wanted


def test_jsonl(tmp_path):
    rows = '{"text": "a"}\n\n{"text": "b", "start": 0.5, "end": 1}\n{"text": " "}\n'
    assert read(tmp_path, "a.jsonl", rows) == [("a", None, None), ("b", 0.5, 1.0)]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", '{"captions": []}', "expected a list of"),
        ("a.json", '[{"caption": "x"}]', r"row\[0\]: got \['caption'\]; expected \"text\""),
        (
            "a.json",
            '[{"text": "x", "start": 1}]',
            "row.0.: start 1 and end None; expected two numbers",
        ),
        ("a.json", '{"words": [{"word": "x", "start": 2, "end": 1}]}', "words.0.: ends at 1 s"),
        ("a.json", '[{"text": "x", "start": NaN, "end": 1}]', "expected two numbers"),
        ("a.json", '{"segments": [', "not JSON: .*line 1"),
        ("a.json", "[" * 100_000, "not JSON"),
        ("a.json", "3", "a int; expected a list"),
        ("a.jsonl", '{"text": "a"}\n{"txt": "b"}', "line 2: got .'txt'.; expected \"text\""),
        ("a.jsonl", '{"text": "a"}\nplain', "line 2: not JSON"),
        ("a.srt", "1\n00:00:05,000 --> 00:00:04,000\nx", "line 2: the cue ends before it starts"),
        ("a.srt", "1\n5 sec --> 6 sec\nx", "line 2: '5 sec --> 6 sec' has no times like"),
        ("a.srt", "only prose", "no cue found"),
        ("a.txt", b"caf\xe9", "not utf-8: byte 0xe9 at 3; convert"),
        ("a.pdf", "x", "unknown kind of text '.pdf'"),
    ],
)
def test_what_cannot_be_understood_is_named(name, content, reason, tmp_path):
    with pytest.raises(MediaError, match=reason) as caught:
        read(tmp_path, name, content)
    assert str(tmp_path / name) in str(caught.value)


def test_a_missing_text_is_named(tmp_path):
    with pytest.raises(MediaError, match="no such file"):
        read_text(tmp_path / "a.txt")
