"""Text and ids: nothing is lost, nothing typed can be mistaken for END, and words end on time."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from mmpredict.schema import Clip, TextPiece
from mmpredict.tokens import TextTokens

CORPUS = ["the red ball rolls behind the wall", "a ball bounces twice", "<vid> is no token"] * 3
BYTES = TextTokens()
BPE = TextTokens(kind="bpe", vocab_size=300).fit(CORPUS)
HARD = {
    "empty": "",
    "space": "  two  spaces \n\tand a tab ",
    "accents": "d\u00e9j\u00e0 vu \u00dcber e\u0301",
    "emoji": "ball \U0001f3c0 \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "scripts": "\u7403\u304c\u8df3\u306d\u308b \u0421\u043b\u043e\u0432\u043e",
    "nul": "a\x00b\x00",
    "byte-alphabet": "\u0120the \u010a",  # how a byte-level BPE writes a space and a line end
    "special": "<vid><eos><|endoftext|></s>[PAD]",
}
SPECIAL = ("<vid>", "<eos>", "<|endoftext|>")


def encoded(codec: TextTokens, *texts: str) -> list[int]:
    return codec.encode(Clip(texts=tuple(map(TextPiece, texts)))).contents.tolist()


def file_with_specials(folder: Path) -> tuple[TextTokens, set[int]]:
    """A codec from a tokenizer.json that has special tokens of its own, and their ids."""
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_str(BPE.vocabulary)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL])
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    ids = {tokenizer.token_to_id(t) for t in SPECIAL}
    return TextTokens(kind="bpe", path=str(folder / "tokenizer.json")), ids


@pytest.mark.parametrize("codec", [BYTES, BPE], ids=["bytes", "bpe"])
@pytest.mark.parametrize("text", HARD.values(), ids=HARD)
def test_no_text_is_lost(codec: TextTokens, text: str):
    ids, char_ends = codec.ids_of(text)
    assert codec.text_of(ids) == text
    assert len(char_ends) == len(ids) and char_ends == sorted(char_ends)
    assert not ids or char_ends[-1] == len(text)
    assert all(0 <= i < codec.end_id for i in ids)


def test_bytes_keep_lone_surrogates():
    for text in ("a\ud800b", "\udfff", "\ud83d\ude00"):
        assert BYTES.text_of(BYTES.ids_of(text)[0]) == text


def test_bpe_refuses_lone_surrogates_clearly():
    for text in ("a\ud800b", "\udfff"):
        with pytest.raises(ValueError, match="lone surrogate.*kind: bytes"):
            BPE.ids_of(text)
        with pytest.raises(ValueError, match="lone surrogate.*kind: bytes"):
            TextTokens(kind="bpe", vocab_size=300).fit(["good", text])


@pytest.mark.parametrize("codec", [BYTES, BPE], ids=["bytes", "bpe"])
def test_a_line_of_a_megabyte(codec: TextTokens):
    text = ("ball \u00e9" * 150_000)[:1_000_000]
    ids, char_ends = codec.ids_of(text)
    assert codec.text_of(ids) == text and char_ends[-1] == len(text)


def test_broken_bytes_become_replacement_characters():
    assert BYTES.text_of([0xC3]) == "\ufffd"


@pytest.mark.parametrize("codec", [BYTES, BPE], ids=["bytes", "bpe"])
@pytest.mark.parametrize("typed", [*SPECIAL, "x<eos>y", "\x00", "\u0100"])
def test_typed_specials_never_give_the_end_id(codec: TextTokens, typed: str):
    ids = encoded(codec, typed)
    assert codec.end_id not in ids[:-1] and ids[-1] == codec.end_id


def test_typed_specials_of_a_file_are_plain_text(tmp_path: Path):
    codec, special_ids = file_with_specials(tmp_path)
    for typed in (*SPECIAL, "x<eos>y"):
        ids, _ = codec.ids_of(typed)
        assert not special_ids & set(ids) and codec.end_id not in ids
        assert codec.text_of(ids) == typed
    for other in (copy.deepcopy(codec), pickle.loads(pickle.dumps(codec))):
        assert other.ids_of("<eos>") == codec.ids_of("<eos>")


def test_a_file_that_cuts_and_pads_does_not_cut_and_pad_here(tmp_path: Path):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(BPE.vocabulary)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=10)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    codec = TextTokens(kind="bpe", path=str(tmp_path / "tokenizer.json"))
    for text in ("b", "the red ball rolls"):
        assert codec.ids_of(text) == BPE.ids_of(text)


def test_end_lies_above_every_id_of_a_file_with_gaps(tmp_path: Path):
    plain = json.loads(BPE.vocabulary)
    plain["model"]["vocab"]["b"] = 900
    (tmp_path / "tokenizer.json").write_text(json.dumps(plain), encoding="utf-8")
    codec = TextTokens(kind="bpe", path=str(tmp_path / "tokenizer.json"))
    assert 900 in codec.ids_of("zb")[0]
    assert codec.end_id > 900


@pytest.mark.parametrize("codec", [BYTES, BPE], ids=["bytes", "bpe"])
def test_end_closes_each_piece_and_cuts_them_apart(codec: TextTokens):
    texts = ("", "a ball", "", "rolls\n")
    clip = Clip(texts=tuple(map(TextPiece, texts)))
    tokens = codec.encode(clip)
    assert tokens.contents.dtype == torch.int64 and tokens.end_s.isnan().all()
    assert int((tokens.contents == codec.end_id).sum()) == len(texts)
    assert codec.decode(tokens).texts == clip.texts
    assert codec.encode(Clip()) is None


@pytest.mark.parametrize("codec", [BYTES, BPE], ids=["bytes", "bpe"])
def test_tokens_end_with_their_word(codec: TextTokens):
    piece = TextPiece("red ball \u00e9t\u00e9", 2.0, 3.2)  # 12 letters, 0.1 s each
    tokens = codec.encode(Clip(texts=(piece,)))
    ids, char_ends = codec.ids_of(piece.text)
    for end, time in zip(char_ends, tokens.end_s.tolist(), strict=False):
        word_end = 3 if end <= 3 else 8 if end <= 8 else 12
        assert time == pytest.approx(2.0 + 0.1 * word_end, abs=1e-9)
    assert tokens.end_s[-1] == 3.2


@pytest.mark.parametrize("codec", [BYTES, BPE], ids=["bytes", "bpe"])
def test_times_never_run_back_nor_leave_the_piece(codec: TextTokens):
    spans = [(0.3, 0.9), *((0.1 * i, 0.1 * i + 0.07 * j) for i in range(9) for j in range(1, 6))]
    for start, end in spans:
        times = codec.encode(Clip(texts=(TextPiece("a red ball", start, end),))).end_s
        assert bool((times.diff() >= 0).all())
        assert float(times.min()) >= start and float(times.max()) == end


def test_timed_and_untimed_pieces_keep_their_order_and_times():
    pieces = (TextPiece("one two", 1.0, 2.0), TextPiece("free"), TextPiece("three", 1.5, 3.0))
    tokens = BYTES.encode(Clip(texts=pieces))
    back = BYTES.decode(tokens).texts
    assert [p.text for p in back] == ["one two", "free", "three"]
    assert [p.end_s for p in back] == [2.0, None, 3.0]
    overlapping = BYTES.encode(Clip(texts=(TextPiece("long", 0, 5), TextPiece("short", 1, 2))))
    assert bool((overlapping.end_s.diff() >= 0).all())


def test_same_corpus_same_vocabulary():
    again = TextTokens(kind="bpe", vocab_size=300).fit(iter(CORPUS))
    assert again.vocabulary == BPE.vocabulary and again == BPE
    assert BPE.fit(["something else"]) is BPE


def test_sizes_of_vocabularies(tmp_path: Path):
    assert BYTES.spec.vocab_size == 257 and BYTES.end_id == 256
    assert BPE.spec.vocab_size == 300  # also where the corpus is too small to fill it
    codec, special_ids = file_with_specials(tmp_path)
    assert codec.end_id > max(special_ids)
    with pytest.raises(ValueError, match="text.vocab_size=257"):
        TextTokens(kind="bpe", vocab_size=257)
    with pytest.raises(ValueError, match="not trained yet"):
        TextTokens(kind="bpe").ids_of("a")
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        TextTokens(kind="bpe", path=str(tmp_path / "nowhere.json"))


def model_folder(folder: Path, **config: object) -> tuple[Path, int]:
    """A folder as language models have it, and the id of its <eos>."""
    from tokenizers import Tokenizer

    file_with_specials(folder)
    eos = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("<eos>")
    plain = {"vocab_size": 310, "eos_token_id": eos} | config
    (folder / "config.json").write_text(json.dumps(plain), encoding="utf-8")
    return folder, eos


def test_a_language_models_folder_says_its_end_and_its_size(tmp_path: Path):
    folder, eos = model_folder(tmp_path)
    codec = TextTokens(kind="bpe", path=str(folder))
    assert codec.end_id == eos and codec.spec.vocab_size == 310  # some more than the tokenizer has
    for typed in (*SPECIAL, "x<eos>y", "a red ball"):
        ids = encoded(codec, typed)
        assert ids[-1] == eos and eos not in ids[:-1]
        assert codec.text_of(ids[:-1]) == typed
    assert codec.text_of([309]) == ""  # a row without a word
    (folder / "tokenizer.json").unlink()  # a checkpoint is read where the folder is not
    (folder / "config.json").unlink()
    assert TextTokens(**asdict(codec)) == codec
    assert TextTokens(**asdict(codec)).end_id == eos
    for other in (copy.deepcopy(codec), pickle.loads(pickle.dumps(codec))):
        assert other.spec == codec.spec and encoded(other, "<eos>") == encoded(codec, "<eos>")


def test_an_end_of_ones_own_and_the_first_of_several(tmp_path: Path):
    folder, eos = model_folder(tmp_path, eos_token_id=[298, 299])
    assert TextTokens(kind="bpe", path=str(folder)).end_id == 298
    assert TextTokens(kind="bpe", path=str(folder), end=eos).end_id == eos
    file = TextTokens(kind="bpe", path=str(folder / "tokenizer.json"), end=eos)
    without = TextTokens(kind="bpe", path=str(folder / "tokenizer.json"))
    assert file.end_id == eos and file.spec.vocab_size == without.spec.vocab_size - 1


def test_folders_that_do_not_fit_are_refused_with_numbers(tmp_path: Path):
    def refused(match: str, error: type[Exception] = ValueError, **settings: object) -> None:
        with pytest.raises(error, match=match):
            TextTokens(kind="bpe", path=str(tmp_path), **settings)

    refused("without config.json", FileNotFoundError)
    file, _ = file_with_specials(tmp_path)
    ids = file.spec.vocab_size - 1  # without the END that a file alone is given
    model_folder(tmp_path, vocab_size=ids - 1)
    refused(f"tokenizer has {ids} ids.* {ids - 1} rows")
    model_folder(tmp_path, eos_token_id=None)
    refused("eos_token_id=None; give text.end")
    _, eos = model_folder(tmp_path)
    refused("text.vocab_size=400.* says 310", vocab_size=400)
    refused("end is 310", end=310)
    a = BPE.ids_of("a")[0][0]
    refused(f"text.end={a} is 'a', which a text may contain", end=a)
    with pytest.raises(ValueError, match="text.end=5 is for a vocabulary from a file"):
        TextTokens(end=5)
    (tmp_path / "config.json").write_text("{")
    refused("config.json is damaged")
    model_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    refused("tokenizer.json is not a file", FileNotFoundError)
