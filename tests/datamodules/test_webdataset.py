"""Tars that others made become documents; hostile ones are left out whole, and nothing is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import pytest
import torch

from datamodules import AudioVisual, Skipped
from datamodules.webdataset import WebDataset, short_names, text_of
from mmpredict.media import Limits, MediaBytes, MediaError
from mmpredict.schema import Stop, TextPiece
from mmpredict.shards import Remote
from mmpredict.tokens import TextTokens
from tests.datamodules.small import (
    AUDIO,
    STREAMS,
    TEXT,
    VIDEO,
    all_documents,
    codecs,
    loading,
    same,
    write_sound,
    write_video,
)
from tests.datamodules.small import (
    text_of as said_in,
)
from tests.shards.server import serving

SPLITS = ("train", "val", "test")
SRT = b"1\n00:00:00,100 --> 00:00:00,900\nsome words are said\n"
REAL = Path(os.environ.get("MMPREDICT_REAL_CLIPS", "~/.cache/mmpredict/real_clips")).expanduser()


def tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def picture(seed: int) -> bytes:
    import av

    frame = av.VideoFrame.from_ndarray(
        torch.full((16, 16, 3), 20 * seed % 256, dtype=torch.uint8).numpy(), format="rgb24"
    )
    file = io.BytesIO()
    with av.open(file, "w", format="image2pipe") as container:
        stream = container.add_stream("png", rate=1)
        stream.width = stream.height = 16
        stream.pix_fmt = "rgb24"
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return file.getvalue()


def videos(folder: Path, count: int = 6, seconds: float = 1.3) -> dict[str, bytes]:
    found = {}
    for n in range(count):
        found[f"clips/{n:04d}.mp4"] = write_video(folder / f"{n:04d}.mp4", seconds, n).read_bytes()
        found[f"clips/{n:04d}.srt"] = SRT
    return found


def web(urls: Path | str | list[str], *streams: str, **options: object) -> WebDataset:
    how = {"clip_seconds": 0.5, "loading": loading()} | codecs(*streams or STREAMS)
    data = WebDataset(urls if isinstance(urls, list) else str(urls), **how | options)
    data.setup()
    return data


def every(data: WebDataset) -> list[object]:
    return [row for split in SPLITS for row in all_documents(data.documents(split))]


# Documents


def test_windows_are_those_of_the_same_files_in_a_folder(tmp_path):
    members = videos(tmp_path / "files")
    for name, data in members.items():
        (tmp_path / "files" / Path(name).name).write_bytes(data)
    tar(tmp_path / "t/a.tar", dict(list(members.items())[:6]))
    tar(tmp_path / "t/b.tar", dict(list(members.items())[6:]))
    folder = AudioVisual(
        str(tmp_path / "files"), **codecs(*STREAMS), clip_seconds=0.5, loading=loading()
    )
    folder.setup()
    rows: dict[tuple[str, int], list[object]] = {}
    for data in (web(tmp_path / "t"), folder):
        for split in SPLITS:
            documents = data.documents(split)
            for index in range(len(documents)):
                source, number = documents.find(index)
                key = source.path.stem[-4:], number
                rows.setdefault(key, []).append(documents.document(0, index))
    assert len(rows) == 6 * 3
    assert all(same(*pair) for pair in rows.values())


def test_samples_of_all_kinds(tmp_path):
    members = {
        "a.mp4": write_video(tmp_path / "v.mp4", 0.5).read_bytes(),
        "a.json": b'{"caption": "a caption", "url": "http://x"}',
        "b.wav": write_sound(tmp_path / "s.wav", 0.5).read_bytes(),
        "b.txt": b"spoken",
        "b.npy": b"no media",
        "c.PNG": picture(3),
        "c.cls": b"17",
        "d.txt": b"text alone",
        "e.meta.json": b'{"height": 3}',
        "e.png": picture(5),
    }
    data = web(tar(tmp_path / "a.tar", members), clip_seconds=None)
    rows = {}
    for split in SPLITS:
        documents = data.documents(split)
        rows |= {documents.find(i)[0].path.name: r for i, r in enumerate(all_documents(documents))}
    have = {name: (set(row.contents), said_in([row])) for name, row in rows.items()}
    assert have == {
        "a.tar!a.mp4": ({AUDIO, VIDEO, TEXT}, ["a caption"]),
        "a.tar!b.wav": ({AUDIO, TEXT}, ["spoken"]),
        "a.tar!c.PNG": ({VIDEO, TEXT}, ["17"]),
        "a.tar!d.txt": ({TEXT}, ["text alone"]),
        "a.tar!e.png": ({VIDEO}, []),
    }


def test_what_is_left_out_is_said_once_with_its_number(tmp_path, capsys):
    members = {}
    for n in range(5):
        members |= {f"{n}.png": picture(n), f"{n}.npy": b"", f"{n}.wav.zst": b"", f"{n}": b""}
    data = web(tar(tmp_path / "a.tar", members), "video")
    assert len(every(data)) == 5
    out = capsys.readouterr().out
    assert out.count("left out") == 1
    for words in ("5 .npy", "5 .zst", "5 (no suffix)"):
        assert words in out


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"one\ntwo\n", ["one\ntwo"]),
        ("a.json", b'{"text": "one"}', ["one"]),
        ("a.json", b'{"captions": ["one", "two", 3, " "]}', ["one", "two"]),
        ("a.json", b'{"width": 3}', []),
        ("a.json", b'"a word"', []),
        ("a.json", b'[{"text": "one", "start": 0, "end": 1}]', ["one"]),
        ("a.cls", b"7\n", ["7"]),
        ("a.srt", SRT, ["some words are said"]),
    ],
)
def test_text_members(name, content, expected):
    assert [piece.text for piece in text_of(MediaBytes(name, content))] == expected


def test_timed_text_comes_before_untimed_and_a_text_before_a_caption(tmp_path):
    sound = write_sound(tmp_path / "s.wav", 1.0).read_bytes()
    members = {
        "a.wav": sound,
        "a.txt": b"untimed",
        "a.json": b'[{"text": "timed", "start": 0.1, "end": 0.2}]',
        "b.wav": sound,
        "b.txt": b"text",
        "b.json": b'{"caption": "caption"}',
    }
    data = web(tar(tmp_path / "a.tar", members), "text", clip_seconds=None)
    pieces = {
        data.documents(s).find(i)[0].path.stem: data.documents(s).find(i)[0].pieces()
        for s in SPLITS
        for i in range(len(data.documents(s)))
    }
    assert pieces == {
        "a.tar!a": (TextPiece("timed", 0.1, 0.2),),
        "a.tar!b": (TextPiece("text"),),
    }


@pytest.mark.parametrize("clip_seconds", [0.5, None])
def test_workers_give_the_same_batches(tmp_path, clip_seconds):
    path = tar(tmp_path / "a.tar", videos(tmp_path, 4))
    runs = []
    for workers in (0, 2):
        how = loading(workers=workers, timeout_s=60.0)
        loader = web(path, loading=how, seed=3, clip_seconds=clip_seconds).train_dataloader()
        runs.append([batch for _ in range(2) for batch in loader])
    assert len(runs[0]) == len(runs[1]) > 0
    assert all(map(same, *runs))


def test_over_http_as_from_disk(tmp_path):
    members = list(videos(tmp_path, 4).items())
    for n in range(2):
        tar(tmp_path / f"t/{n:03d}.tar", dict(members[4 * n : 4 * n + 4]))
    near = every(web(tmp_path / "t"))
    with serving(tmp_path) as server:
        far = web(f"{server.url}/t/{{000..001}}.tar", remote=Remote(timeout_s=5.0, pause_s=0.01))
        assert all(map(same, every(far), near))
        missing = Remote(timeout_s=5.0, tries=1)
        data = web([f"{server.url}/t/{{000..001}}.tar", f"{server.url}/none.tar"], remote=missing)
        assert list(data.skip_log.reasons.values()) == ["no such file on its server"]
        assert list(far.fingerprint()) == ["000.tar", "001.tar"]


# Splits


def test_tars_for_validation_and_test(tmp_path):
    members = list(videos(tmp_path, 6).items())
    for n, name in enumerate(("train-0", "train-1", "val-0")):
        tar(tmp_path / f"t/{name}.tar", dict(members[4 * n : 4 * n + 4]))
    data = web(f"{tmp_path}/t/train-{{0..1}}.tar", val_urls=f"{tmp_path}/t/val-0.tar")
    names = {s: {x.holder.name[:7] for x in data.documents(s).sources} for s in SPLITS}
    assert names["val"] == {"val-0.t"}
    assert names["train"] | names["test"] == {"train-0", "train-1"}
    assert sum(len(data.documents(s)) for s in SPLITS) == 18
    whole = web(
        f"{tmp_path}/t/train-{{0..1}}.tar",
        val_urls=f"{tmp_path}/t/val-0.tar",
        test_urls=f"{tmp_path}/t/val-0.tar",
    )
    assert [len(whole.documents(s)) for s in SPLITS] == [12, 6, 6]
    with pytest.raises(ValueError, match="val-0.tar stands in data.urls and in data.val_urls"):
        web(tmp_path / "t", val_urls=f"{tmp_path}/t/val-0.tar")


def test_the_split_does_not_depend_on_the_tar(tmp_path):
    """The same samples in other tars, in another order."""
    members = list(videos(tmp_path, 12, 0.3).items())
    tar(tmp_path / "one/a.tar", dict(members))
    for n in range(4):
        tar(tmp_path / f"many/{9 - n}.tar", dict(members[6 * n : 6 * n + 6]))
    found = []
    for folder in ("one", "many"):
        data = web(tmp_path / folder)
        found.append({s: {x.path.name[-8:] for x in data.documents(s).sources} for s in SPLITS})
    assert found[0] == found[1] and all(found[0].values())


# Hostile and broken


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("suffix", ["pkl", "pickle", "pyd", "pth", "pkl.gz"])
def test_a_pickle_is_never_opened(tmp_path, suffix):
    canary = tmp_path / "canary"
    trap = pickle.dumps(Trap(canary))
    good = videos(tmp_path, 4)
    tar(tmp_path / "t/bad.tar", {"x.mp4": good["clips/0000.mp4"], f"x.{suffix}": trap})
    tar(tmp_path / "t/good.tar", good)
    data = web(tmp_path / "t")
    assert len(every(data)) == 12 and not any(isinstance(row, Skipped) for row in every(data))
    ((name, reason),) = data.skip_log.reasons.items()
    assert name.endswith(f"bad.tar!x.{suffix}") and "code or a pickle" in reason
    assert not canary.exists()


@pytest.mark.parametrize(
    "url",
    [
        "pipe:touch {canary}; cat {tar}",
        "pipe://touch {canary}",
        "zip://x::pipe:touch {canary}",
        "ftp://127.0.0.1/x.tar",
    ],
)
def test_pipes_and_other_schemes_are_refused_before_anything_runs(tmp_path, url):
    canary = tmp_path / "canary"
    with pytest.raises(ValueError, match="not an address"):
        WebDataset(url.format(canary=canary, tar=tmp_path / "a.tar"))
    with pytest.raises(ValueError, match="not an address"):
        WebDataset(str(tmp_path), val_urls=[url.format(canary=canary, tar="a.tar")])
    assert not canary.exists()


def test_hostile_tars_write_nothing_and_open_no_socket(tmp_path):
    good = videos(tmp_path / "made", 8)
    tar(tmp_path / "t/up.tar", {"../../evil.mp4": good["clips/0000.mp4"]})
    tar(tmp_path / "t/abs.tar", {"/evil.mp4": good["clips/0000.mp4"]})
    with tarfile.open(tmp_path / "t/link.tar", "w") as file:
        info = tarfile.TarInfo("evil.mp4")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(info)
    tar(tmp_path / "t/good.tar", good)
    with serving(tmp_path) as server:
        playlist = f"#EXTM3U\n#EXTINF:1,\n{server.url}/x.ts\n".encode()
        tar(tmp_path / "t/list.tar", {"list.mp4": playlist, "ff.mp4": b"ffconcat version 1.0\n"})
        before = sorted(p for p in tmp_path.rglob("*"))
        data = web(tmp_path / "t", loading=loading(max_skipped_share=0.9, min_skipped=100))
        assert len(every(data)) == 8 * 3
        assert sorted(p for p in tmp_path.rglob("*")) == before
        assert server.seen == []
    names = {Path(name).name for name in data.skip_log.reasons}
    assert names == {
        "up.tar",
        "abs.tar",
        "link.tar!evil.mp4",
        "list.tar!list.mp4",
        "list.tar!ff.mp4",
    }


def test_one_broken_sample_is_skipped_by_name(tmp_path):
    members = videos(tmp_path, 6)
    members["clips/0002.mp4"] = b"not a video"
    members["clips/0003.srt"] = b"1\n00:00:01 -> oops\nhello\n"
    data = web(tar(tmp_path / "a.tar", members), "audio", "video", "text")
    rows = every(data)
    assert "a.tar!clips/0002.mp4" in data.skip_log.reasons
    broken = {row.source for row in rows if isinstance(row, Skipped)}
    assert broken == {"a.tar!clips/0003.srt"}
    assert sum(not isinstance(row, Skipped) for row in rows) == 4 * 3


def test_members_over_the_limit_and_limits_of_the_tar(tmp_path):
    path = tar(tmp_path / "a.tar", videos(tmp_path, 4))
    with pytest.raises(Stop, match="Limits.max_duration_s"):
        web(path, limits=Limits(max_duration_s=1.0))
    from mmpredict.shards import TarLimits

    with pytest.raises(Stop, match="more than 3 members"):
        web(path, tar_limits=TarLimits(max_members=3))


def test_an_only_tar_that_is_cut_off_stops_with_its_name(tmp_path):
    path = tar(tmp_path / "a.tar", videos(tmp_path, 4))
    path.write_bytes(path.read_bytes()[:-12_000])
    with pytest.raises(Stop, match="a.tar.*cut off"):
        web(path)
    with pytest.raises(ValueError, match="holds no .tar file"):
        web(tmp_path / "t" if (tmp_path / "t").mkdir() else tmp_path / "t")


def test_a_changed_tar_has_another_fingerprint(tmp_path):
    members = videos(tmp_path, 3)
    before = web(tar(tmp_path / "a.tar", members)).fingerprint()
    assert web(tmp_path / "a.tar").fingerprint() == before
    members["clips/0000.mp4"] = members["clips/0001.mp4"]
    assert web(tar(tmp_path / "a.tar", members)).fingerprint() != before


def test_a_vocabulary_is_trained_on_the_training_texts(tmp_path):
    path = tar(tmp_path / "a.tar", videos(tmp_path, 5))
    data = web(path, text=TextTokens(kind="bpe", vocab_size=270))
    assert data.codecs.text.is_fitted
    assert all(isinstance(row, Skipped) is False for row in every(data))


def test_short_names():
    assert short_names(["/d/a.tar", "/d/b/c.tar"]) == {"/d/a.tar": "a.tar", "/d/b/c.tar": "b/c.tar"}
    one, two = "http://h/x/a.tar?t=1", "http://h/y/a.tar?t=1"
    assert short_names([one, two]) == {one: "x/a.tar", two: "y/a.tar"}
    assert short_names(["/d/a.tar", "http://h/d/a.tar"])["http://h/d/a.tar"] == "http://h/d/a.tar"


def test_the_layout_that_img2dataset_writes(tmp_path):
    members = {}
    for n in range(6):
        about = {"caption": f"caption {n}", "url": "http://x", "key": f"{n:09d}", "width": 16}
        members |= {
            f"{n:09d}.jpg": picture(n),
            f"{n:09d}.txt": f"caption {n}".encode(),
            f"{n:09d}.json": json.dumps(about).encode(),
        }
    data = web(tar(tmp_path / "00000.tar", members), "video", "text")
    rows = every(data)
    assert sorted(said_in(rows)) == [f"caption {n}" for n in range(6)]
    assert all(len(row.contents[VIDEO]) == 4 for row in rows)


@pytest.mark.skipif(not REAL.is_dir(), reason="run examples/fetch_real_clips.py first")
def test_real_clips_in_a_tar(tmp_path):
    names = [name for name in ("small.mp4", "silence.wav", "bikes.mp4") if (REAL / name).is_file()]
    members = {name: (REAL / name).read_bytes() for name in names}
    data = web(
        tar(tmp_path / "a.tar", members), clip_seconds=2.0, loading=loading(context_length=512)
    )
    rows = every(data)
    assert rows and not any(isinstance(row, Skipped) for row in rows)
    with pytest.raises(MediaError):
        data.documents("train").sources[0].holder._bytes(
            data.documents("train").sources[0].holder.medium.__class__("x", 1 << 40, 5)
        )
