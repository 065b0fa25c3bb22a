"""Samples come back exactly, from disk and over http, and no flipped bit goes unnoticed."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import pytest
import torch

from mmpredict.media import MediaError, read_clip
from mmpredict.schema import Clip, Series, TextPiece, UserError
from mmpredict.shards.index import INDEX_NAME, IndexDamaged, Sample
from mmpredict.shards.remote import Remote
from mmpredict.shards.store import Store
from tests.datamodules.small import recording, write_sound, write_video
from tests.shards.server import serving
from tests.shards.stored import of_clip, of_file, write_store

TEXTS = (TextPiece("one two", 0.0, 0.4), TextPiece("three"))
ACTIONS = {
    "action": Series(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0.0, 0.5]).double())
}


def full(seed: int) -> Clip:
    clip = recording(0.5, seed)
    loud = (clip.waveform_CS * 32767).round() / 32768  # 16 bits keep it exactly
    return Clip(**{**clip.__dict__, "waveform_CS": loud, "texts": TEXTS, "series": ACTIONS})


def raw_store(folder: Path, count: int = 6) -> Path:
    return write_store(folder, [of_clip(full(n), "raw") for n in range(count)], per_shard=4)


def same_clip(a: Clip, b: Clip) -> bool:
    tensors = all(
        (x is None) == (y is None) and (x is None or torch.equal(x, y))
        for x, y in (
            (a.frames_TCHW, b.frames_TCHW),
            (a.times_s, b.times_s),
            (a.waveform_CS, b.waveform_CS),
        )
    )
    series = a.series.keys() == b.series.keys() and all(
        torch.equal(a.series[n].values_TD, b.series[n].values_TD) for n in a.series
    )
    return tensors and series and (a.texts, a.sample_rate) == (b.texts, b.sample_rate)


def test_raw_samples_come_back_exactly(tmp_path):
    store = Store(raw_store(tmp_path / "s"))
    assert len(store) == 6
    for number, sample in enumerate(store.index.samples):
        assert same_clip(store.read(sample), full(number))
    assert store.read(store.index.samples[5]).name == "000001.tar!k0005"


def test_streams_that_are_not_wanted_are_not_read(tmp_path):
    store = Store(raw_store(tmp_path / "s"))
    sample = store.index.samples[0]
    damage(store, sample, "video.npy")
    heard = store.read(sample, frames=False)
    assert heard.frames_TCHW is None and torch.equal(heard.waveform_CS, full(0).waveform_CS)
    with pytest.raises(MediaError, match="k0000.video.npy: its bytes differ"):
        store.read(sample)


def test_encoded_samples_are_near_and_have_their_text(tmp_path):
    store = Store(write_store(tmp_path / "s", [of_clip(full(n), "encoded") for n in range(3)]))
    for number, sample in enumerate(store.index.samples):
        clip, truth = store.read(sample), full(number)
        assert torch.equal(clip.times_s, truth.times_s) and clip.texts == TEXTS
        assert (clip.frames_TCHW.float() - truth.frames_TCHW.float()).abs().mean() < 4
        assert torch.equal(clip.waveform_CS, truth.waveform_CS), "flac loses nothing"


def test_kept_files_are_the_same_files(tmp_path):
    video, sound = write_video(tmp_path / "v.mp4", 1.0), write_sound(tmp_path / "s.wav", 1.0)
    items = [of_file(video, Clip(texts=TEXTS)), of_file(sound)]
    store = Store(write_store(tmp_path / "s", items))
    first, second = store.index.samples
    assert store.file(first).data == video.read_bytes()
    assert store.file(first).name == "000000.tar!k0000.mp4"
    assert same_clip(store.read(second), read_clip(sound))
    assert store.read(first).texts == store.texts(first) == TEXTS


def damage(store: Store, sample: Sample, suffix: str, bit: int = 3) -> None:
    """Flip one bit of a member."""
    member = sample.member(suffix)
    with open(store.address(sample.shard), "r+b") as file:
        file.seek(member.offset + bit // 8)
        (byte,) = file.read(1)
        file.seek(member.offset + bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


@pytest.mark.parametrize("form", ["raw", "encoded", "keep"])
def test_no_flipped_bit_is_silent(tmp_path, form):
    """Any bit of any member: reading raises and names it, and after repair all is as before."""
    path = write_video(tmp_path / "v.mp4", 0.5)
    item = of_file(path, Clip(texts=TEXTS)) if form == "keep" else of_clip(full(0), form)
    store = Store(write_store(tmp_path / "s", [item]))
    (sample,) = store.index.samples
    draw, silent = random.Random(0), 0
    for _ in range(120):
        member = draw.choice(sample.members)
        bit = draw.randrange(8 * member.size)
        damage(store, sample, member.suffix, bit)
        try:
            store.members(sample)
            silent += 1
        except MediaError as error:
            assert error.path == f"000000.tar!k0000.{member.suffix}"
            assert "its bytes differ from the index (sha256)" in error.reason
        damage(store, sample, member.suffix, bit)
    assert silent == 0
    store.read(sample)


def test_the_check_is_switched_off_only_by_name(tmp_path):
    trusting = Store(raw_store(tmp_path / "s"), check=False)
    sample = trusting.index.samples[0]
    damage(trusting, sample, "video.npy", bit=8 * 200)
    assert not same_clip(trusting.read(sample), full(0))
    with pytest.raises(MediaError, match="sha256"):
        Store(tmp_path / "s").read(sample)


def test_a_shard_that_is_missing_or_short(tmp_path):
    store = Store(raw_store(tmp_path / "s"))
    path = tmp_path / "s/000001.tar"
    path.write_bytes(path.read_bytes()[:2000])
    fresh = Store(tmp_path / "s")
    with pytest.raises(MediaError, match="k0005.*its shard.*000001.tar: ends before"):
        fresh.read(fresh.index.samples[5])
    path.unlink()
    fresh = Store(tmp_path / "s")
    with pytest.raises(MediaError, match="its shard.*no such file"):
        fresh.read(fresh.index.samples[5])
    assert same_clip(fresh.read(fresh.index.samples[0]), full(0))
    assert len(store) == 6


def test_a_limit_on_what_a_sample_may_take(tmp_path):
    store = Store(raw_store(tmp_path / "s"), max_bytes=1000)
    with pytest.raises(MediaError, match="over the limit of 1,000"):
        store.read(store.index.samples[0])


def test_an_index_that_is_missing_or_damaged(tmp_path):
    with pytest.raises(UserError, match="mmpredict prepare"):
        Store(tmp_path / "none")
    index = raw_store(tmp_path / "s") / INDEX_NAME
    data = index.read_bytes()
    for damaged in (data[:-30], data.replace(b'"raw"', b'"row"', 1), b"", b"{}\n"):
        index.write_bytes(damaged)
        with pytest.raises(IndexDamaged, match=INDEX_NAME):
            Store(tmp_path / "s")


def test_over_http_as_from_disk(tmp_path):
    raw_store(tmp_path / "s")
    with serving(tmp_path) as server:
        hasty = Remote(timeout_s=5.0, pause_s=0.01)
        for root in (f"{server.url}/s", f"{server.url}/s/", f"{server.url}/s/{INDEX_NAME}"):
            store = pickle.loads(pickle.dumps(Store(root, remote=hasty)))
            server.seen.clear()
            assert same_clip(store.read(store.index.samples[4]), full(4))
            assert len(server.seen) == 1, "one request for all members of a sample"
        with pytest.raises(UserError, match="no such file on its server.*mmpredict prepare"):
            Store(f"{server.url}/none", remote=hasty)


def test_sockets_are_not_opened_for_other_schemes():
    with pytest.raises(ValueError, match="not an address"):
        Store("pipe:cat x")
