"""A tar is listed, never unpacked; one that could harm is refused by its member's name."""

from __future__ import annotations

import io
import os
import random
import tarfile
import time
from pathlib import Path

import pytest

from mmpredict.media import MediaError
from mmpredict.shards.remote import RangeReader
from mmpredict.shards.tar_read import TarLimits, TarMember, scan_tar

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def scan(path: Path, **limits: int) -> list[TarMember]:
    return scan_tar(RangeReader().source(str(path)), TarLimits(**limits))


def made(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo, form: str = "gnu") -> Path:
    with tarfile.open(path, "w", format=FORMATS[form]) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member, io.BytesIO(b"x" * member.size))
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def odd(name: str, kind: bytes, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    return info


def sealed(header: bytes) -> bytes:
    """A header with its sum made right again."""
    blank = header[:148] + b" " * 8 + header[156:512]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("seed", range(4))
def test_the_same_members_as_tarfile_finds(tmp_path, form, seed):
    """Names of all lengths up to 255, in all three dialects; content where it is said to lie."""
    draw = random.Random(seed)
    members, names = [], set()
    for number in range(40):
        length = draw.choice([1, 20, 99, 100, 101, 150] + ([255] if form != "ustar" else []))
        name = f"{number:03d}/" + "".join(draw.choices("abc/\u00e9_.", k=length))[: length - 4]
        name = "/".join(part.strip(".") or "d" for part in name.split("/"))[:255].rstrip("/.")
        if name not in names and (form != "ustar" or len(name.encode()) < 100):
            names.add(name)
            members.append((name, draw.randbytes(draw.choice([0, 1, 511, 512, 513, 70_000]))))
    path = made(tmp_path / "a.tar", *members, form=form)
    data = path.read_bytes()
    found = scan(path)
    assert [(m.name, data[m.offset : m.offset + m.size]) for m in found] == members
    with tarfile.open(path) as tar:
        assert [(m.offset, m.size) for m in found] == [(i.offset_data, i.size) for i in tar]


def test_folders_are_passed_over_and_dots_taken_away(tmp_path):
    path = made(
        tmp_path / "a.tar",
        odd(".", tarfile.DIRTYPE),
        odd("./d", tarfile.DIRTYPE),
        ("./d/./a", b"1"),
    )
    assert [m.name for m in scan(path)] == ["d/a"]


HOSTILE = {
    "up": (("../evil.txt", b""), "leads out of its folder"),
    "inner up": (("a/../../evil.txt", b""), "leads out of its folder"),
    "backslash up": (("a\\..\\evil.txt", b""), "leads out of its folder"),
    "absolute": (("/etc/evil.txt", b""), "absolute name"),
    "drive": (("C:evil.txt", b""), "absolute name"),
    "symlink": (odd("evil.txt", tarfile.SYMTYPE, "/etc/passwd"), "symbolic link"),
    "hard link": (odd("evil.txt", tarfile.LNKTYPE, "a.txt"), "hard link"),
    "device": (odd("evil.txt", tarfile.CHRTYPE), "device"),
    "disk": (odd("evil.txt", tarfile.BLKTYPE), "device"),
    "pipe": (odd("evil.txt", tarfile.FIFOTYPE), "named pipe"),
    "sparse": (odd("evil.txt", tarfile.GNUTYPE_SPARSE), "sparse file"),
    "unknown": (odd("evil.txt", b"Q"), "unknown kind"),
    "twice": (("a.txt", b"2"), "two members"),
    "twice by dots": (("././a.txt", b"2"), "two members"),
    "300": (("evil" + "e" * 296, b""), "300 characters"),
    "control": (("evil\n.txt", b""), "control character"),
    "pickle": (("evil.pkl", b""), "code or a pickle"),
    "pyd": (("evil.pyd", b""), "code or a pickle"),
    "packed pickle": (("evil.PICKLE.gz", b""), "code or a pickle"),
    "torch": (("evil.x.pth", b""), "code or a pickle"),
    "program": (("evil.exe", b""), "code or a pickle"),
    "library": (("evil.so", b""), "code or a pickle"),
}


@pytest.mark.parametrize(("member", "words"), HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_hostile_members_are_refused_by_name(tmp_path, member, words, form):
    path = made(tmp_path / "bad.tar", ("a.txt", b"1"), member, form=form)
    before = sorted(tmp_path.parent.rglob("*"))
    with pytest.raises(MediaError, match=words) as refusal:
        scan(path)
    assert str(path) in str(refusal.value)
    assert "evil" in str(refusal.value) or "a.txt" in str(refusal.value)
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_a_name_behind_a_zero_byte(tmp_path):
    path = made(tmp_path / "bad.tar", ("good.txt", b"1"))
    data = bytearray(path.read_bytes())
    data[9:16] = b"../evil"
    path.write_bytes(sealed(bytes(data[:512])) + data[512:])
    with pytest.raises(MediaError, match="zero byte in its name"):
        scan(path)
    pax = tarfile.TarInfo("x")
    pax.pax_headers = {"path": "good.txt\0../evil"}
    path = made(tmp_path / "pax.tar", pax, form="pax")
    with pytest.raises(MediaError, match="control character"):
        scan(path)


def test_sparse_files_in_pax_headers(tmp_path):
    info = tarfile.TarInfo("evil.txt")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    with pytest.raises(MediaError, match="sparse"):
        scan(made(tmp_path / "bad.tar", info, form="pax"))


@pytest.mark.parametrize("field", [b"\x80" + b"\0" * 3 + b"\x7f" * 8, b"77777777777\0"])
def test_a_size_that_passes_the_end(tmp_path, field):
    path = made(tmp_path / "bad.tar", ("a.txt", b"1"), ("evil.mp4", b"2"))
    data = bytearray(path.read_bytes())
    data[1024 + 124 : 1024 + 136] = field
    data[1024:1536] = sealed(bytes(data[1024:1536]))
    path.write_bytes(data)
    with pytest.raises(MediaError, match="evil.mp4.*passes the end"):
        scan(path)


@pytest.mark.parametrize("field", [b"-0000000001\0", b"0_0_0_0_0_1\0", b"\xff" * 12, b"8" * 12])
def test_a_size_that_is_no_number(tmp_path, field):
    path = made(tmp_path / "bad.tar", ("evil.mp4", b"2"))
    data = bytearray(path.read_bytes())
    data[124:136] = field
    path.write_bytes(sealed(bytes(data[:512])) + data[512:])
    with pytest.raises(MediaError, match="size that is no number"):
        scan(path)


def test_every_truncation_is_noticed(tmp_path):
    path = made(tmp_path / "a.tar", ("a.txt", b"1" * 600), ("b.txt", b"2" * 100))
    whole = path.read_bytes()
    content = 512 * (1 + 2 + 1 + 1)
    assert len(scan(path)) == 2
    for size in range(0, content + 512, 37):
        path.write_bytes(whole[:size])
        with pytest.raises(MediaError, match="cut off|not a tar|without the mark"):
            scan(path)
    path.write_bytes(whole[: content + 1024])
    assert len(scan(path)) == 2, "tools pad the end to 10 KiB, but need not"


def test_every_flipped_bit_of_a_header_is_noticed_or_harmless(tmp_path):
    path = made(tmp_path / "a.tar", ("a.txt", b"1" * 600), ("b.txt", b"2" * 100))
    whole, members = path.read_bytes(), scan(path)
    for bit in random.Random(0).sample(range(512 * 8), 300):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            assert scan(path) == members
        except MediaError as error:
            assert str(path) in str(error)


def test_joined_tars_do_not_lose_the_second(tmp_path):
    one, two = (made(tmp_path / f"{n}.tar", (f"{n}.txt", b"1")) for n in "ab")
    one.write_bytes(one.read_bytes() + two.read_bytes())
    with pytest.raises(MediaError, match="two tars joined"):
        scan(one)


@pytest.mark.parametrize(("mode", "how"), [("gz", "gzip"), ("bz2", "bzip2"), ("xz", "xz")])
def test_compressed_tars_say_what_to_do(tmp_path, mode, how):
    path = tmp_path / f"a.tar.{mode}"
    with tarfile.open(path, f"w:{mode}") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(MediaError, match=rf"{how}.*uncompress it"):
        scan(path)


@pytest.mark.parametrize("content", [b"", b"text", b"text" * 1000, os.urandom(5000)])
def test_what_is_no_tar(tmp_path, content):
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(MediaError, match="not a tar|compressed"):
        scan(path)


def test_limits(tmp_path):
    path = made(tmp_path / "a.tar", *((f"{n}.txt", b"") for n in range(20)))
    assert len(scan(path, max_members=20)) == 20
    with pytest.raises(MediaError, match="more than 19 members"):
        scan(path, max_members=19)
    with pytest.raises(MediaError, match="over the limit of 1,000"):
        scan(path, max_bytes=1000)


def test_long_name_headers_are_limited(tmp_path):
    path = made(tmp_path / "a.tar", ("n" * 2_000_000, b""))
    with pytest.raises(MediaError, match="long-name header of 2,000,0"):
        scan(path)


def test_a_million_members_are_refused_early(tmp_path):
    """Half a GiB of headers (as holes and repeats: 100,001 of them are all that is looked at)."""
    path, block = tmp_path / "bomb.tar", bytearray(tarfile.TarInfo("000000000").tobuf())
    with path.open("wb") as file:
        for number in range(100_010):
            block[:9] = b"%09d" % number
            file.write(sealed(bytes(block)))
        file.truncate(1_000_000 * 512)
    start = time.process_time()
    with pytest.raises(MediaError, match="more than 100,000 members"):
        scan(path)
    assert time.process_time() - start < 2.0


def test_few_reads_for_near_members_and_little_for_far_ones(tmp_path):
    """Read-ahead: a remote tar must not cost a request for each of many small members, nor all its
    bytes for a few large ones."""

    class Counted:
        def __init__(self, path: Path) -> None:
            self.name, self.data = str(path), path.read_bytes()
            self.size, self.calls, self.got = len(self.data), 0, 0

        def read(self, offset: int, length: int) -> bytes:
            self.calls, self.got = self.calls + 1, self.got + length
            assert offset + length <= self.size
            return self.data[offset : offset + length]

    small = Counted(made(tmp_path / "s.tar", *((f"{n}.txt", b"1" * 3000) for n in range(1000))))
    large = Counted(made(tmp_path / "l.tar", *((f"{n}.mp4", b"1" * 1_000_000) for n in range(10))))
    assert len(scan_tar(small)) == 1000 and small.calls < 20
    assert len(scan_tar(large)) == 10 and large.got < large.size / 10
