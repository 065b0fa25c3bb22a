"""What `prepare` writes: whole tars that others read, and an index that says what is in them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmpredict.media import MediaError, read_clip
from mmpredict.schema import Clip, Series, TextPiece, UserError
from mmpredict.shards.index import read_index
from mmpredict.shards.members import Origin, Packing, clip_of_members, members_of_clip
from mmpredict.shards.passages import passages
from mmpredict.shards.sources import find_sources, key_of
from mmpredict.shards.told import told
from tests.shards.prepared import (
    ENCODED,
    KEEP,
    RAW,
    files_of,
    make_folder,
    prepared,
    video,
    wav,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("sources") / "films")


@pytest.fixture(scope="module")
def raw(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("raw") / "out"
    return out, prepared(folder, out)


def members_of(out, sample, index):
    data = (out / index.shards[sample.shard].name).read_bytes()
    return {m.suffix: data[m.offset : m.offset + m.size] for m in sample.members}


def test_every_member_lies_where_the_index_says(raw):
    out, _ = raw
    index = read_index(out)
    named = {}
    for shard in index.shards:
        data = (out / shard.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for info in tar:
                assert (info.mtime, info.uid, info.gid, info.mode) == (0, 0, 0, 0o644)
                assert info.isreg() and info.name not in named
                named[info.name] = tar.extractfile(info).read()
    listed = {}
    for sample in index.samples:
        for member in sample.members:
            data = members_of(out, sample, index)[member.suffix]
            assert hashlib.sha256(data).hexdigest() == member.sha256
            listed[f"{sample.key}.{member.suffix}"] = data
    assert listed == named
    assert len(index.shards) > 2, "the shards should have been cut"


def test_members_of_a_sample_are_neighbours(raw):
    out, _ = raw
    for sample in read_index(out).samples:
        for before, after in zip(sample.members, sample.members[1:], strict=False):
            assert after.offset == before.offset + before.size + -before.size % 512 + 512


def test_webdataset_reads_the_same_samples(raw):
    webdataset = pytest.importorskip("webdataset")
    out, _ = raw
    index = read_index(out)
    urls = [str(out / shard.name) for shard in index.shards]
    found = {
        s["__key__"]: s for s in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    }
    assert found.keys() == {sample.key for sample in index.samples}
    for sample in index.samples:
        for suffix, data in members_of(out, sample, index).items():
            assert found[sample.key][suffix] == data


def test_raw_clips_are_those_of_the_reader(folder, raw):
    out, _ = raw
    index = read_index(out)
    seen = 0
    for sample in index.samples:
        source = index.sources[sample.source].path
        if not source.endswith((".mp4", ".wav")):
            continue
        stored = clip_of_members(members_of(out, sample, index), sample.key)
        direct = read_clip(
            folder / source,
            start_s=sample.start_s,
            duration_s=RAW.clip_seconds,
            fps=RAW.fps,
            size=RAW.size,
            sample_rate=RAW.sample_rate,
            channels=1,
        )
        for name in ("frames_TCHW", "times_s"):
            ours, theirs = getattr(stored, name), getattr(direct, name)
            assert (ours is None) == (theirs is None)
            assert ours is None or torch.equal(ours, theirs)
        assert (stored.waveform_CS is None) == (direct.waveform_CS is None)
        if direct.waveform_CS is not None:
            assert (stored.waveform_CS - direct.waveform_CS).abs().max() <= 0.5 / 32768
        seen += 1
    assert seen == 3 + 2 + 2


def test_numpy_reads_raw_members_without_pickle(raw):
    out, _ = raw
    index = read_index(out)
    sample = next(s for s in index.samples if s.member("video.npy"))
    members = members_of(out, sample, index)
    frames = np.load(io.BytesIO(members["video.npy"]), allow_pickle=False)
    sound = np.load(io.BytesIO(members["audio.npy"]), allow_pickle=False)
    assert frames.shape == (2, 3, 16, 16) and frames.dtype == np.uint8
    assert sound.shape == (1, 4000) and sound.dtype == np.int16


def test_no_word_and_no_source_is_lost(folder, raw):
    out, summary = raw
    index = read_index(out)
    said = {}
    for sample in index.samples:
        about = json.loads(members_of(out, sample, index)["json"])
        texts = [row["text"] for row in about.get("texts", ())]
        said.setdefault(index.sources[sample.source].path, []).extend(texts)
    assert " ".join(said["b.mp4"]).split() == "one two three four".split()
    assert said["notes.txt"] == ["First words.", "Second words."]
    assert said["rows.jsonl"] == ["row one", "row two"]
    named = {s.path for s in index.sources} | {s.path for s in index.skipped}
    assert named == {source.name for source in find_sources(folder, out).sources}
    assert find_sources(folder, out).left_alone == {".xlsx": 1}
    [skip] = summary.skipped
    assert (skip.path, skip.kind, skip.modality) == ("broken.mp4", "unreadable", "video")


def test_tokens_are_what_the_codecs_make(raw):
    out, _ = raw
    index = read_index(out)
    codecs = RAW.codecs()
    for sample in index.samples:
        clip = clip_of_members(members_of(out, sample, index), sample.key)
        made = {
            codecs.layout[t.modality].name: len(t.contents)
            * codecs.layout[t.modality].positions_per_block
            for t in codecs.encode(clip)
        }
        assert sample.tokens == made


def test_a_kept_file_comes_back_to_the_bit(folder, tmp_path):
    prepared(folder, tmp_path / "out", KEEP)
    index = read_index(tmp_path / "out")
    sources = {s.source: index.sources[s.source].path for s in index.samples}
    for sample in index.samples:
        source = sources[sample.source]
        members = members_of(tmp_path / "out", sample, index)
        if source.endswith((".mp4", ".wav")):
            original = (folder / source).read_bytes()
            assert members[source.rsplit(".", 1)[1]] == original
            assert sample.form == "keep" and sample.duration_s == pytest.approx(
                {"b.mp4": 1.5, "sub/a.mp4": 1.0, "sub/tone.wav": 0.75}[source]
            )
            assert hashlib.sha256(original).hexdigest() in {m.sha256 for m in sample.members}


def test_trusted_headers_say_the_same_of_sound_files(folder, tmp_path):
    prepared(folder, tmp_path / "read", KEEP)
    prepared(folder, tmp_path / "trusted", replace(KEEP, trust=True))
    read, trusted = read_index(tmp_path / "read"), read_index(tmp_path / "trusted")
    assert [tuple(s.members) for s in read.samples] == [tuple(s.members) for s in trusted.samples]
    assert [s.tokens for s in read.samples] == [s.tokens for s in trusted.samples]


def test_encoded_clips_are_close_and_their_sound_exact(tmp_path):
    (tmp_path / "in").mkdir()
    wav(tmp_path / "in" / "tone.wav", 0.5, 3)
    prepared(tmp_path / "in", tmp_path / "out", ENCODED)
    index = read_index(tmp_path / "out")
    clip = clip_of_members(members_of(tmp_path / "out", index.samples[0], index), "a")
    assert torch.equal(clip.waveform_CS, read_clip(tmp_path / "in" / "tone.wav").waveform_CS)
    smooth = torch.linspace(0, 255, 32).round().to(torch.uint8)
    frames = torch.stack([smooth.roll(k).expand(32, 32) for k in range(8)])[:, None]
    frames = torch.cat([frames, frames.flip(-1), frames.transpose(-1, -2)], 1)
    moving = Clip(frames, torch.arange(3, 11).double() / 4)
    made, about = members_of_clip(moving, Origin("k", "s"), Packing(form="encoded"))
    back = clip_of_members(dict(made), "k")
    assert torch.equal(back.times_s, moving.times_s) and "times_s" not in about["video"]
    assert (back.frames_TCHW.int() - frames.int()).abs().float().mean() < 4


def test_encoding_twice_gives_the_same_bytes(tmp_path):
    frames = torch.randint(256, (12, 3, 36, 50), generator=torch.Generator().manual_seed(0))
    clip = Clip(frames.to(torch.uint8), torch.arange(12).double() / 8)
    made = {dict(members_of_clip(clip, Origin("k", "s"), Packing("encoded"))[0])["mp4"]}
    for _ in range(20):
        [torch.rand(5000) for _ in range(50)]  # what an encoder may find in fresh memory
        made.add(dict(members_of_clip(clip, Origin("k", "s"), Packing("encoded"))[0])["mp4"])
    assert len(made) == 1


def test_series_odd_times_and_odd_text_survive():
    series = {"action": Series(torch.tensor([[0.1, float("nan")]]), torch.tensor([0.3]).double())}
    texts = (TextPiece("a\ud800\x00b"), TextPiece("timed", 0.1, 1 / 3))
    times = torch.tensor([0.0, 0.1, 0.7]).double()
    frames = torch.arange(3 * 3 * 4 * 5).reshape(3, 3, 4, 5).to(torch.uint8)
    clip = Clip(
        frames, times, torch.rand(2, 7) * 2 - 1, 44100, 0.25, texts, series, notices=("odd",)
    )
    made, about = members_of_clip(clip, Origin("k", "s"), Packing("raw", sound="float32"))
    back = clip_of_members(dict(made), "k")
    assert torch.equal(back.frames_TCHW, frames) and torch.equal(back.times_s, times)
    assert torch.equal(back.waveform_CS, clip.waveform_CS)
    assert (back.sample_rate, back.waveform_start_s) == (44100, 0.25)
    assert back.texts == texts and back.notices == ("odd",)
    values = back.series["action"].values_TD
    assert torch.equal(values.nan_to_num(9), series["action"].values_TD.nan_to_num(9))
    json.loads(dict(made)["json"], parse_constant=lambda _: pytest.fail("NaN in JSON"))


@pytest.mark.parametrize(
    "name",
    ["../../evil.mp4", "/etc/passwd.mp4", "a b.c.d.mp4", "\u65e5\u672c.mp4", "x" * 300 + ".mp4"],
)
def test_keys_are_safe_whatever_a_file_is_called(name):
    key = key_of(name, 7)
    assert set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-/")
    assert not key.startswith("/") and len(key) < 90
    assert key != key_of(name + "x", 7) and key != key_of(name, 8)


def test_hostile_file_names_do_no_harm(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    names = [b"\xff\xfe.txt", b"a\nb\x1b[31m.txt", b"-rf.txt", "\u65e5\u672c.txt".encode()]
    for name in names:
        with open(bytes(root) + b"/" + name, "w") as file:
            file.write("words")
    with open(bytes(root) + b"/\xff.wav", "wb") as file:
        file.write(b"no sound")
    summary = prepared(root, tmp_path / "out")
    index = read_index(tmp_path / "out")
    assert len(index.samples) == 4 and len({sample.key for sample in index.samples}) == 4
    said = "\n".join(told(summary, tmp_path / "out", {}, 1.0))
    assert "udcff.wav" in said and said.replace("\n", "").isprintable()
    assert prepared(root, tmp_path / "out").converted == 0


def test_circles_of_links_end_and_are_named(tmp_path):
    root = tmp_path / "in"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "again").symlink_to(root)
    (root / "a.txt").write_text("words")
    found = find_sources(root, tmp_path / "out")
    assert [source.name for source in found.sources] == ["a.txt"]
    assert found.left_alone == {"link to a folder": 1}


def test_out_inside_the_source_is_no_source(folder, tmp_path):
    root = make_folder(tmp_path / "films")
    before = [source.name for source in find_sources(root, root / "out").sources]
    prepared(root, root / "out", KEEP)
    assert [source.name for source in find_sources(root, root / "out").sources] == before
    with pytest.raises(UserError, match="is the folder to be read"):
        find_sources(root, root)
    inside = {path.parent for path in root.rglob("*") if path.is_file()}
    work = root / "out" / ".prepare"
    assert inside <= {root, root / "sub", root / "out", work}


def test_a_folder_of_something_else_is_left_alone(folder, tmp_path):
    (tmp_path / "mine.tar").write_bytes(b"precious")
    with pytest.raises(UserError, match="no index.jsonl"):
        prepared(folder, tmp_path)
    assert files_of(tmp_path).keys() == {"mine.tar"}


def test_a_manifest_gives_spans_with_their_words(tmp_path):
    video(tmp_path / "film.mp4", 2.0, 5)
    rows = [
        {"path": "film.mp4", "start": 0.5, "end": 1.25, "text": "alpha beta", "weight": 2},
        {"path": "film.mp4", "start": 1.5, "id": "tail"},
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared(tmp_path / "list.jsonl", tmp_path / "out")
    index = read_index(tmp_path / "out")
    assert [s.path for s in index.sources] == ["film.mp4#0.5-1.25", "film.mp4#tail"]
    assert [(s.start_s, s.duration_s, s.weight) for s in index.samples] == [
        (0.5, 0.5, 2.0),
        (1.0, 0.25, 2.0),
        (1.5, 0.5, 1.0),
    ]
    assert [s.streams.get("text", {}).get("characters") for s in index.samples] == [5, 4, None]
    with_spans = prepared(tmp_path / "list.jsonl", tmp_path / "kept", KEEP)
    assert "cannot be kept" in with_spans.skipped[0].reason and with_spans.samples == 0


def test_long_texts_are_cut_at_white_space_and_nothing_is_lost():
    words = [f"word{n}" for n in range(500)]
    parts = passages([TextPiece(" ".join(words)), TextPiece("x" * 70), TextPiece("end")], 60)
    assert all(sum(len(piece.text) for piece in part) <= 60 for part in parts)
    text = " ".join(piece.text for part in parts for piece in part)
    assert text.split() == [*words, "x" * 60, "x" * 10, "end"]


def test_a_picture_is_a_sample_of_one_frame(tmp_path):
    matplotlib = pytest.importorskip("matplotlib.image")
    (tmp_path / "in").mkdir()
    matplotlib.imsave(tmp_path / "in" / "p.png", np.full((20, 30, 3), 200, np.uint8))
    (tmp_path / "in" / "p.txt").write_text("a grey field")
    prepared(tmp_path / "in", tmp_path / "out")
    index = read_index(tmp_path / "out")
    [sample] = index.samples
    clip = clip_of_members(members_of(tmp_path / "out", sample, index), "p")
    assert clip.frames_TCHW.shape == (1, 3, 16, 16) and (clip.frames_TCHW == 200).all()
    assert clip.texts == (TextPiece("a grey field"),) and sample.duration_s == 0


@pytest.mark.parametrize("form", ["keep", "raw"])
def test_bombs_and_references_are_skipped_with_their_reason(form, tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    video(root / "wide.mp4", 0.5, 1)
    wav(root / "long.wav", 3.0, 1)
    (root / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n")
    (root / "concat.mp4").write_text("ffconcat version 1.0\nfile wide.mp4\n")
    (root / "nothing.mp4").write_bytes(b"")
    (root / "words.txt").write_bytes(b"\xff\xfe\x00")
    settings = replace(RAW, form=form, max_pixels=500, max_duration_s=2.0)
    summary = prepared(root, tmp_path / "out", settings)
    kinds = {skip.path: skip.kind for skip in summary.skipped}
    assert kinds == {
        "wide.mp4": "limits",
        "long.wav": "limits",
        "list.mp4": "unreadable",
        "concat.mp4": "unreadable",
        "nothing.mp4": "empty",
        "words.txt": "unreadable",
    }
    assert summary.samples == 0 and summary.shards == 0


def test_a_damaged_window_costs_no_other(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    wav(root / "w.wav", 2.0, 1)
    original = (root / "w.wav").read_bytes()
    (root / "w.wav").write_bytes(original[: len(original) * 3 // 5])  # shorter than it claims
    prepared(root, tmp_path / "out")
    index = read_index(tmp_path / "out")
    total = sum(sample.streams["audio"]["samples"] for sample in index.samples)
    assert total == pytest.approx(2.0 * 8000 * 3 / 5, abs=0.25 * 8000)


def test_a_sample_that_is_none_says_so():
    with pytest.raises(MediaError, match="not a sample"):
        clip_of_members({"json": b"{"}, "x")
    with pytest.raises(MediaError, match="not a sample"):
        clip_of_members({"json": b'{"video": {}}', "video.npy": b"junk"}, "x")
