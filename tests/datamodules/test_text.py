"""Text alone: nothing is lost, nothing held out is trained on."""

from __future__ import annotations

import json

import pytest
import torch

from datamodules import Text
from datamodules.text import PASSAGE_CHARACTERS, cut_passages
from mmpredict.schema import Stop
from mmpredict.tokens import TextTokens
from tests.datamodules.small import TEXT, all_documents, loading, prose, text_of

SPLITS = ("train", "val", "test")


def text(root=None, codec=TextTokens(), **options: object) -> Text:
    data = Text(None if root is None else str(root), codec, loading=loading(), **options)
    data.setup()
    return data


def passages(data: Text) -> dict[str, list[str]]:
    """Every split's passages, from its documents' ids."""
    end = data.codecs.text.end_id
    found = {}
    for split in SPLITS:
        ids = torch.cat([row.contents[TEXT] for row in all_documents(data.documents(split))])
        ends = (ids == end).nonzero()[:, 0].tolist()
        starts = [0, *(at + 1 for at in ends[:-1])]
        cut = [ids[a:b].tolist() for a, b in zip(starts, ends, strict=True)]
        found[split] = [data.codecs.text.text_of(part) for part in cut]
    return found


def folder(tmp_path, count: int = 30, characters: int = 700):
    for n in range(count):
        (tmp_path / f"t{n:02d}.txt").write_text(prose(characters, n))
    return tmp_path


def test_the_default_text_ships_with_python_and_is_used_whole():
    from pydoc_data.topics import topics

    data = text()
    found = passages(data)
    assert sorted(sum(found.values(), [])) == sorted(
        passage for topic in topics.values() for passage in cut_passages(topic)
    )
    assert all(found.values())
    assert not set(found["train"]) & {*found["val"], *found["test"]}


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_nothing_is_lost_in_a_folder(tmp_path, kind):
    data = text(folder(tmp_path), TextTokens(kind=kind, vocab_size=300))
    found = passages(data)
    assert sorted(sum(found.values(), [])) == sorted(prose(700, n) for n in range(30))
    tokens = sum(row.modality.shape[1] for s in SPLITS for row in all_documents(data.documents(s)))
    assert tokens == sum(len(data.codecs.text.ids_of(prose(700, n))[0]) + 1 for n in range(30))
    lengths = [row.modality.shape[1] for row in all_documents(data.documents("train"))]
    assert max(lengths) <= data.loading.context_length


def test_lines_of_jsonl_are_texts_of_their_own(tmp_path):
    texts = [prose(100, n) for n in range(40)]
    lines = [json.dumps({"text": line}) for line in texts]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert sorted(sum(passages(text(tmp_path / "a.jsonl")).values(), [])) == sorted(texts)


@pytest.mark.parametrize("long_line", [False, True])
def test_joined_passages_are_the_text(long_line):
    whole = prose(90_000, 3) + "\x0c\n\r\n a\u2028b\n\n" + prose(30_000, 4)
    if long_line:
        whole = whole.replace("\n", " ")
    cut = cut_passages(whole)
    assert "".join(cut) == whole
    assert max(map(len, cut)) <= PASSAGE_CHARACTERS and len(cut) < 10


def test_the_split_is_that_of_the_content(tmp_path):
    (tmp_path / "one").mkdir()
    before = passages(text(folder(tmp_path / "one")))
    for path in (tmp_path / "one").iterdir():
        path.rename(path.with_name(f"z{hash(path.name) % 97}{path.name}"))
    assert passages(text(tmp_path / "one")) == before
    for n in range(30, 60):
        (tmp_path / "one" / f"new{n}.txt").write_text(prose(700, n))
    after = passages(text(tmp_path / "one"))
    assert not set(before["train"]) & {*after["val"], *after["test"]}


def test_a_passage_that_occurs_twice_is_in_one_split(tmp_path):
    folder(tmp_path, 12)
    for path in list(tmp_path.iterdir()):
        for copy in range(3):
            (tmp_path / f"copy{copy}-{path.name}").write_text(path.read_text())
    found = passages(text(tmp_path, held_out_share=0.3))
    assert sum(map(len, found.values())) == 48
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not set(found[one]) & set(found[other])


def test_the_vocabulary_is_trained_on_training_text_alone(tmp_path):
    """A pair of letters that is frequent in held-out passages alone earns no token."""
    folder(tmp_path)
    plain = text(tmp_path)
    held_out = passages(plain)["val"] + passages(plain)["test"]
    assert sorted(text(tmp_path).corpus()) == sorted(passages(plain)["train"])
    fitted = text(tmp_path, TextTokens(kind="bpe", vocab_size=300)).codecs.text
    again = TextTokens(kind="bpe", vocab_size=300).fit(passages(plain)["train"])
    everything = TextTokens(kind="bpe", vocab_size=300).fit(passages(plain)["train"] + held_out)
    assert fitted == again != everything


def test_broken_files_are_skipped_by_name(tmp_path):
    folder(tmp_path, 20)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 50)
    (tmp_path / "half.jsonl").write_text('{"text": "a"}\n{"text": ')
    data = text(tmp_path)
    data.setup("test")
    reasons = data.skip_log.reasons
    assert set(reasons) == {str(tmp_path / "latin.txt"), str(tmp_path / "half.jsonl")}
    assert "utf-8" in reasons[str(tmp_path / "latin.txt")]
    assert "line 2" in reasons[str(tmp_path / "half.jsonl")]
    assert data.skip_log.num_sources == 22


def test_mostly_broken_files_stop_with_the_whole_list(tmp_path):
    for n in range(6):
        (tmp_path / f"bad{n}.txt").write_bytes(b"\xff\xfe\x00")
    folder(tmp_path, 4)
    with pytest.raises(Stop) as stop:
        text(tmp_path)
    assert stop.value.code == 65 and "6 of 10" in str(stop.value)
    assert all(f"bad{n}.txt: " in str(stop.value) for n in range(6))


def test_hidden_files_are_not_text(tmp_path):
    folder(tmp_path, 6)
    (tmp_path / "._t00.txt").write_bytes(b"\x00\x05\x16\x07\xff")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "licence.txt").write_text(prose(900, 77))
    data = text(tmp_path)
    assert data.skip_log.num_sources == 6 and not data.skip_log.reasons


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_a_lone_surrogate_is_mended(tmp_path, kind):
    lines = [json.dumps({"text": prose(200, n) + "\ud800 x \ude00\ud83d"}) for n in range(9)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    data = text(tmp_path, TextTokens(kind=kind, vocab_size=280))
    said = text_of(all_documents(data.documents("train")), data.codecs.text)
    assert said and all(piece.endswith("\ufffd x \ufffd\ufffd") for piece in said[:1])


def test_missing_and_empty_folders_name_the_folder_and_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path}/none does not exist; give the folder"):
        text(tmp_path / "none")
    with pytest.raises(ValueError, match=rf"{tmp_path} holds no .txt or .jsonl file; give"):
        text(tmp_path)
    (tmp_path / "a.txt").write_text("too short")
    with pytest.raises(ValueError, match="holds 9 characters, too few"):
        text(tmp_path)


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "texts").mkdir()
    folder(tmp_path / "texts", 4)
    assert len(text("~/texts").documents("train")) >= 1


@pytest.mark.parametrize("share", [0.0, 0.5, -1.0])
def test_held_out_share_must_be_a_share(share):
    with pytest.raises(ValueError, match="held_out_share"):
        Text(held_out_share=share)


def test_lengths_are_known_and_true():
    data = Text(text=TextTokens(kind="bytes"), loading=loading(context_length=64))
    data.setup()
    documents = data.documents("val")
    assert all(
        documents.length(0, n) == documents.document(0, n).modality.shape[1]
        for n in range(len(documents))
    )
    assert data.val_dataloader().plans_by_length


def test_a_changed_file_changes_its_own_fingerprint(tmp_path):
    for n in range(4):
        (tmp_path / f"{n}.txt").write_text(prose(500, n))

    def found() -> dict[str, str]:
        data = Text(str(tmp_path), loading=loading())
        data.setup()
        return data.fingerprint()

    before = found()
    (tmp_path / "2.txt").write_text(prose(500, 9))
    after = found()
    assert {name for name in before if before[name] != after[name]} == {"2.txt"}
