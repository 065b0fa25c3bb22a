"""Every damaged member of a folder of shards is named, and nothing else is."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mmpredict.schema import UserError
from mmpredict.shards.index import INDEX_NAME
from mmpredict.shards.remote import Remote
from mmpredict.shards.store import Store
from mmpredict.shards.verify import verify
from tests.shards.server import serving
from tests.shards.test_store import damage, raw_store


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 16
    path.write_bytes(data)


def test_sound_shards_have_nothing_to_name(tmp_path):
    seen: list[tuple[int, int]] = []
    folder = raw_store(tmp_path / "s")
    assert verify(folder, progress=lambda done, total: seen.append((done, total))) == []
    whole = sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert seen[-1] == (whole, whole)
    assert seen == sorted(seen)


def test_exactly_the_damaged_members_are_named(tmp_path):
    folder = raw_store(tmp_path / "s")
    store = Store(folder)
    draw = random.Random(0)
    hit = set()
    for _ in range(3):
        sample = draw.choice(store.index.samples)
        member = draw.choice([m for m in sample.members if (sample.key, m.suffix) not in hit])
        damage(store, sample, member.suffix, draw.randrange(8 * member.size))
        hit.add((sample.key, member.suffix))
    found = verify(folder)
    assert {d.member for d in found} == {
        store.name(s, m.suffix)
        for s in store.index.samples
        for m in s.members
        if (s.key, m.suffix) in hit
    }
    assert all("sha256" in d.reason for d in found)
    assert str(found[0]) == f"{found[0].member}: {found[0].reason}"


def test_any_flipped_byte_of_a_shard_is_found(tmp_path):
    """Headers and padding, too."""
    folder = raw_store(tmp_path / "s", 2)
    (path,) = folder.glob("*.tar")
    for offset in [5, 130, *random.Random(1).sample(range(path.stat().st_size), 30)]:
        flip(path, offset)
        (damaged,) = verify(folder)
        assert damaged.member.startswith("000000.tar")
        flip(path, offset)
    assert verify(folder) == []
    flip(path, 5)
    assert "between its members" in verify(folder)[0].reason


def test_missing_short_long_and_foreign_shards(tmp_path):
    folder = raw_store(tmp_path / "s", 9)
    first, second, third = sorted(folder.glob("*.tar"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:1500])
    third.write_bytes(third.read_bytes() + b"x")
    (folder / "000009.tar").write_bytes(b"")
    (folder / "notes.txt").write_text("no shard")
    found = {}
    for damaged in verify(folder):
        found.setdefault(damaged.member, damaged.reason)
    assert "no such file; it holds 4 samples" in found["000000.tar"]
    assert "has 1,500 bytes, the index says" in found["000001.tar"]
    assert "ends before" in found["000001.tar!k0007.json"]
    assert "the index says" in found["000002.tar"] and "000002.tar!k0008.json" not in found
    assert found["000009.tar"] == "is not in the index"
    assert "notes.txt" not in found


def test_a_damaged_index_is_damage_and_a_missing_one_a_mistake(tmp_path):
    folder = raw_store(tmp_path / "s")
    flip(folder / INDEX_NAME, 700)
    (damaged,) = verify(folder)
    assert damaged.member == INDEX_NAME and "sha256" in damaged.reason
    (folder / INDEX_NAME).unlink()
    with pytest.raises(UserError, match="mmpredict prepare"):
        verify(folder)


def test_over_http(tmp_path):
    folder = raw_store(tmp_path / "s")
    store = Store(folder)
    damage(store, store.index.samples[5], "audio.npy", 900)
    (folder / "000000.tar").unlink()
    with serving(tmp_path) as server:
        found = verify(f"{server.url}/s", remote=Remote(timeout_s=5.0, tries=2, pause_s=0.01))
    assert [d.member for d in found] == ["000000.tar", "000001.tar!k0005.audio.npy"]
    assert "no such file on its server" in found[0].reason
