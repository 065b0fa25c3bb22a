"""What cannot be read is skipped by name; too much of it, or a folder without media, is refused."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import av
import pytest

from datamodules import AudioVisual, Skipped
from mmpredict.media import Limits, write_clip
from mmpredict.schema import Batch, Clip, Stop
from mmpredict.tokens import TextTokens
from tests.datamodules.small import (
    STREAMS,
    VIDEO,
    all_documents,
    codecs,
    loading,
    recording,
    same,
    write_sound,
    write_sounds,
    write_video,
)


def folder_data(root: Path, *streams: str, limits: Limits = Limits(), **how: object) -> AudioVisual:
    data = AudioVisual(
        str(root),
        **codecs(*streams or STREAMS),
        clip_seconds=0.5,
        limits=limits,
        loading=loading(**how),
    )
    data.setup()
    return data


def read_all(data: AudioVisual, epochs: int = 1) -> int:
    """Documents read in all splits; tokens are the proof."""
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    tokens = sum(batch.num_tokens for _ in range(epochs) for loader in loaders for batch in loader)
    data.teardown("fit")
    return tokens


def damage_middle(path: Path, first: float = 1 / 3, last: float = 1 / 2) -> None:
    """Overwrite packets in the middle; the header stays whole. There is one key frame, so that no
    picture behind the damage can be shown."""
    data = bytearray(path.read_bytes())
    at = data.find(b"mdat") + 4
    span = len(data) - at
    for n in range(at + int(span * first), at + int(span * last)):
        data[n] = (n * 37) % 251
    path.write_bytes(data)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_among_good_ones_is_named_once(tmp_path, workers):
    for n in range(6):
        write_video(tmp_path / f"good{n}.mp4", 1.0, n)
    (tmp_path / "text.mp4").write_text("not a video")
    damaged = write_video(tmp_path / "damaged.mp4", 4.0, 9)
    damage_middle(damaged)
    data = folder_data(tmp_path, workers=workers, timeout_s=60.0)
    assert sum(len(data.documents(s)) for s in ("train", "val", "test")) >= 20
    assert read_all(data, epochs=2) > 0
    assert set(data.skip_log.reasons) == {str(tmp_path / "text.mp4"), str(damaged)}
    assert data.skip_log.num_sources == 8
    assert all(data.skip_log.reasons.values())


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".srt", b"1\n00:00:01 -> oops\nhello\n"),
        (".vtt", b"WEBVTT\n\n00:00:02.000 --> 00:00:01.000\nbackwards\n"),
        (".json", b'{"segments": [{"text": "a", "start": "soon", "end": 2}]}'),
        (".jsonl", b'{"text": "fine"}\n{"text": '),
        (".txt", b"caf\xe9"),
    ],
)
@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_a_broken_text_beside_a_file_is_skipped_by_name(tmp_path, suffix, content, kind):
    for path in write_sounds(tmp_path, 5):
        path.with_suffix(".txt").write_text("a few words")
    beside = tmp_path / f"x{suffix}"
    write_sound(tmp_path / "x.wav", 1.0, 9)
    beside.write_bytes(content)
    data = AudioVisual(
        str(tmp_path),
        **codecs("audio") | {"text": TextTokens(kind=kind, vocab_size=270)},
        clip_seconds=0.5,
        loading=loading(),
    )
    data.setup()
    assert read_all(data, epochs=2) > 0
    assert list(data.skip_log.reasons) == [str(beside)]


def test_broken_text_is_no_matter_for_a_run_without_text(tmp_path):
    write_sounds(tmp_path, 3)
    (tmp_path / "s00.json").write_text("{")
    data = folder_data(tmp_path, "audio")
    assert read_all(data) > 0 and not data.skip_log.reasons


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_a_lone_surrogate_in_text_is_mended(tmp_path, kind):
    for path in write_sounds(tmp_path, 3):
        path.with_suffix(".json").write_text('[{"text": "a \\ud800 b", "start": 0, "end": 0.4}]')
    data = AudioVisual(
        str(tmp_path),
        **codecs("audio") | {"text": TextTokens(kind=kind, vocab_size=270)},
        clip_seconds=0.5,
        loading=loading(),
    )
    data.setup()
    assert read_all(data) > 0 and not data.skip_log.reasons


def _as_matroska(path: Path, claimed_s: float) -> Path:
    """The same packets under a header that claims another length."""
    with av.open(str(path)) as source, av.open(str(path.with_suffix(".mkv")), "w") as target:
        streams = [target.add_stream_from_template(stream) for stream in source.streams]
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    path.unlink()
    data = bytearray(path.with_suffix(".mkv").read_bytes())
    at = data.find(b"\x44\x89\x88")  # element Duration, 8 bytes: a float64 of milliseconds
    struct.pack_into(">d", data, at + 3, claimed_s * 1000)
    path.with_suffix(".mkv").write_bytes(data)
    return path.with_suffix(".mkv")


def test_a_file_that_lies_about_its_length_is_named(tmp_path):
    for n in range(5):
        write_video(tmp_path / f"good{n}.mp4", 1.0, n)
    liar = _as_matroska(write_video(tmp_path / "liar.mp4", 1.0, 9), claimed_s=60.0)
    data = folder_data(tmp_path)
    outcomes = [
        documents.document(0, number)
        for documents in map(data.documents, ("train", "val", "test"))
        for number in range(len(documents))
        if documents.find(number)[0].path == liar
    ]
    assert len(outcomes) == 120
    assert sum(isinstance(outcome, Batch) for outcome in outcomes) in (2, 3)
    assert read_all(data) > 0
    assert set(data.skip_log.reasons) == {str(liar)}
    assert "ends at 1." in data.skip_log.reasons[str(liar)]


def test_a_lie_costs_one_look_and_is_told_the_same_way_by_all(tmp_path, monkeypatch):
    """Behind the true end of a file nothing is read again, whichever document found it out."""
    for n in range(3):
        write_video(tmp_path / f"good{n}.mp4", 1.0, n)
    _as_matroska(write_video(tmp_path / "liar.mp4", 1.0, 9), claimed_s=60.0)
    data = folder_data(tmp_path)
    [documents] = [
        documents
        for documents in map(data.documents, ("train", "val", "test"))
        if any(source.path.stem == "liar" for source in documents.sources)
    ]
    liars = [n for n in range(len(documents)) if documents.find(n)[0].path.stem == "liar"]
    together = documents.read(0, liars)
    one_by_one = [data.documents(_split(data)).document(0, n) for n in liars[::-7]]
    assert all(map(same, one_by_one, together[::-7]))
    monkeypatch.setattr("datamodules.files.window_documents.read_windows", None)
    assert [documents.document(0, n) for n in liars[5:]] == together[5:]


def _split(data: AudioVisual) -> str:
    """The split that has the file called liar."""
    splits = ("train", "val", "test")
    return next(s for s in splits if any(x.path.stem == "liar" for x in data.documents(s).sources))


def test_only_the_damaged_windows_of_a_file_are_left_out(tmp_path):
    """Packets that cannot be decoded at one place; what stands before and behind it is read."""
    for n in range(3):
        write_clip(tmp_path / f"{n}.m4a", recording(8.0, n, video=False))
    damaged = tmp_path / "0.m4a"
    content = bytearray(damaged.read_bytes())
    at = content.find(b"mdat") + 4
    middle = at + (len(content) - at) * 45 // 100  # at 3.6 s
    content[middle : middle + 300] = bytes((n * 37) % 251 for n in range(300))
    damaged.write_bytes(content)
    data = folder_data(tmp_path, "audio")
    for documents in map(data.documents, ("train", "val", "test")):
        rows = documents.read(0, range(len(documents)))
        broken = [n for n, row in enumerate(rows) if isinstance(row, Skipped)]
        starts_s = [documents.window(0, n).start_s for n in broken]
        if documents.sources[0].path == damaged:
            assert len(rows) == 16 and 1 <= len(broken) <= 3
            assert all(3.0 <= start_s <= 4.0 for start_s in starts_s)
            assert all(rows[n].source == str(damaged) and not rows[n].harmless for n in broken)
        else:
            assert not broken
        assert all(map(same, rows, all_documents(documents)))


def test_every_file_that_cannot_be_used_is_named_with_a_kind(tmp_path):
    write_sounds(tmp_path, 12, 0.5)
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "nothing.wav").touch()
    (tmp_path / "blank.txt").write_text(" \n ")
    (tmp_path / "bytes.txt").write_bytes(b"caf\xe9")
    write_sound(tmp_path / "long.wav", 5.0)
    gone = write_sound(tmp_path / "gone.wav", 0.6, 77)
    data = folder_data(tmp_path, limits=Limits(max_duration_s=3.0))
    gone.unlink()
    for row in (row for s in ("train", "val", "test") for row in all_documents(data.documents(s))):
        if isinstance(row, Skipped):
            data.skip_log.note(row)
    assert {Path(source).name: kind for source, kind in data.skip_log.kinds.items()} == {
        "text.mp4": "unreadable",
        "nothing.wav": "empty",
        "blank.txt": "empty",
        "bytes.txt": "unreadable",
        "long.wav": "limits",
        "gone.wav": "missing",
    }


def test_a_long_look_at_the_files_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    write_sounds(tmp_path, 4, 0.3)
    folder_data(tmp_path, "audio")
    assert capsys.readouterr().err == "", "quiet where it is quick"
    monkeypatch.setattr("datamodules.files.headers.QUIET_S", -1.0)
    folder_data(tmp_path, "audio")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"looking at the files: {n} of 4" for n in range(1, 5)]


def test_a_stream_that_ends_before_an_unused_one_is_no_lie(tmp_path):
    """Sound often lasts longer than its video; a run on frames alone has nothing to complain of."""
    for n in range(4):
        short, long = recording(1.0, n, sound=False), recording(3.0, n, video=False)
        whole = Clip(short.frames_TCHW, short.times_s, long.waveform_CS, long.sample_rate)
        write_clip(tmp_path / f"{n}.mp4", whole)
    data = folder_data(tmp_path, "video")
    outcomes = all_documents(data.documents("train"))
    assert any(isinstance(x, Skipped) and x.harmless for x in outcomes)
    assert read_all(data) > 0 and not data.skip_log.reasons
    assert {VIDEO} == {m for x in outcomes if isinstance(x, Batch) for m in x.contents}


def test_a_file_without_a_single_block_is_named(tmp_path):
    write_sounds(tmp_path, 4)
    tiny = write_sound(tmp_path / "tiny.wav", 0.01)
    data = folder_data(tmp_path, "audio")
    read_all(data)
    assert list(data.skip_log.reasons) == [str(tiny)]


def test_too_large_files_are_skipped_with_the_limit(tmp_path):
    write_sounds(tmp_path, 4)
    long = write_sound(tmp_path / "long.wav", 5.0)
    data = folder_data(tmp_path, "audio", limits=Limits(max_duration_s=3.0))
    assert "Limits.max_duration_s" in data.skip_log.reasons[str(long)]


def test_mostly_broken_files_stop_with_the_whole_list(tmp_path):
    write_sounds(tmp_path, 3)
    for n in range(4):
        (tmp_path / f"bad{n}.mp4").write_text("no")
    with pytest.raises(Stop) as stop:
        folder_data(tmp_path)
    assert "4 of 7 files" in str(stop.value)
    assert all(f"bad{n}.mp4: " in str(stop.value) for n in range(4))


def test_files_that_break_while_reading_stop_the_run(tmp_path):
    for n in range(3):
        damage_middle(write_video(tmp_path / f"{n}.mp4", 4.0, n), 0.7, 0.8)
    with pytest.raises(Stop, match="of 3 files cannot be used"):
        read_all(folder_data(tmp_path, min_skipped=1, max_skipped_share=0.01))
    # But a few windows of each are not half of all.
    data = folder_data(tmp_path)
    read_all(data)
    assert 0 < len(data.skip_log.reasons) <= 3


def test_the_five_percent_rule_and_its_limits(tmp_path):
    [good] = write_sounds(tmp_path, 1, 0.3)
    for n in range(29):
        shutil.copy(good, tmp_path / f"copy{n}.wav")
    for n in range(10):
        (tmp_path / f"bad{n}.wav").write_text("no")
    with pytest.raises(Stop, match="10 of 40 files"):
        folder_data(tmp_path)
    for limits in ({"max_skipped_share": 0.3}, {"min_skipped": 11}):
        assert len(folder_data(tmp_path, **limits).skip_log.reasons) == 10


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: root / "none", "does not exist"),
        (lambda root: root, "holds no video, sound, image or text"),
    ],
)
def test_no_media_names_the_folder_and_the_remedy(tmp_path, make, words):
    (tmp_path / "notes.pdf").write_text("no media")
    with pytest.raises(ValueError) as refusal:
        folder_data(make(tmp_path))
    assert words in str(refusal.value)
    assert f"data.root={make(tmp_path)}" in str(refusal.value)
    assert "give the folder" in str(refusal.value)


def test_no_file_with_a_stream_of_the_run(tmp_path):
    write_sounds(tmp_path, 2)
    with pytest.raises(ValueError, match="holds nothing with a stream of the recipe .video."):
        folder_data(tmp_path, "video")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"clip_seconds": 0.1}, "clip_seconds=0.1 must be at least"),
        ({"clip_seconds": float("nan")}, "clip_seconds"),
        ({"held_out_share": 0.5}, "held_out_share=0.5"),
        ({"audio": None, "video": None, "text": None}, "all streams are null"),
    ],
)
def test_settings_that_cannot_be(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        AudioVisual(str(tmp_path), **settings)


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_sounds(tmp_path / "media", 3, 0.3)
    data = AudioVisual("~/media", **codecs("audio"), clip_seconds=0.5, loading=loading())
    data.setup()
    assert len(data.documents("train")) == 1
