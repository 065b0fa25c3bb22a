"""Bytes by range, from disk and over http: exact, in time, and clear about what went wrong."""

from __future__ import annotations

import io
import os
import pickle
import random
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from mmpredict.media import MediaError
from mmpredict.shards.addresses import beside, list_addresses, local_path, shown
from mmpredict.shards.remote import RangeReader, Remote
from mmpredict.shards.tar_read import scan_tar
from tests.shards.server import Server, serving

HASTY = Remote(timeout_s=5.0, tries=3, pause_s=0.01)


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    data = random.Random(0).randbytes(300_000)
    (tmp_path / "a.bin").write_bytes(data)
    return data


@pytest.fixture
def server(tmp_path: Path, content: bytes):
    with serving(tmp_path) as running:
        yield running


def stretches(size: int, count: int = 20) -> list[tuple[int, int]]:
    draw = random.Random(1)
    bounds = [sorted(draw.sample(range(size + 1), 2)) for _ in range(count)]
    return [(a, b - a) for a, b in bounds] + [(0, size), (size - 1, 1), (5, 0)]


# Local files


def test_local_stretches_are_exact(tmp_path, content):
    reader = RangeReader()
    for address in (str(tmp_path / "a.bin"), (tmp_path / "a.bin").as_uri()):
        assert reader.size(address) == len(content)
        for offset, length in stretches(len(content)):
            assert reader.read(address, offset, length) == content[offset : offset + length]


def test_what_is_not_there_says_so(tmp_path, content):
    reader = RangeReader()
    with pytest.raises(MediaError, match=r"ends before bytes 299,999 to 300,009 \(1 of 10"):
        reader.read(str(tmp_path / "a.bin"), 299_999, 10)
    with pytest.raises(MediaError, match="none.bin: no such file"):
        reader.read(str(tmp_path / "none.bin"), 0, 1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MediaError, match="pipe: not a regular file"):
        reader.read(str(tmp_path / "pipe"), 0, 1)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
def test_few_files_are_open_at_once(tmp_path):
    names = [str(tmp_path / f"{n}.bin") for n in range(40)]
    for n, name in enumerate(names):
        Path(name).write_bytes(b"%03d" % n)
    before = open_files()
    reader = RangeReader(max_open=5)
    for _ in range(2):
        for n, name in enumerate(names):
            assert reader.read(name, 0, 3) == b"%03d" % n
            assert open_files() <= before + 6
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(reader.read, names * 20, [0] * 800, [3] * 800))
    assert got == [b"%03d" % n for n in range(40)] * 20
    del reader
    assert open_files() <= before + 6


def _child(reader: RangeReader, address: str, pipe) -> None:
    pipe.send(reader.read(address, 100, 1000))


@pytest.mark.parametrize("way", ["fork", "spawn"])
@pytest.mark.parametrize("over", ["disk", "http"])
def test_a_reader_goes_to_other_processes(tmp_path, content, server, way, over):
    """It was used before, as by a datamodule that looks at its index; both read on."""
    address = str(tmp_path / "a.bin") if over == "disk" else f"{server.url}/a.bin"
    reader = RangeReader(HASTY)
    assert reader.read(address, 0, 10) == content[:10]
    context = get_context(way)
    mine, its = context.Pipe()
    child = context.Process(target=_child, args=(reader, address, its))
    child.start()
    for offset in range(0, 5000, 500):
        assert reader.read(address, offset, 500) == content[offset : offset + 500]
    assert mine.poll(60) and mine.recv() == content[100:1100]
    child.join(20)
    assert child.exitcode == 0
    assert reader.read(address, 200_000, 500) == content[200_000:200_500]


def test_a_pickled_reader_holds_nothing_open(tmp_path, content):
    reader = RangeReader(HASTY, max_open=3)
    reader.read(str(tmp_path / "a.bin"), 0, 1)
    again = pickle.loads(pickle.dumps(reader))
    assert (again.remote, again.max_open) == (HASTY, 3) and not again._open
    assert again.read(str(tmp_path / "a.bin"), 7, 9) == content[7:16]


# Over http


def test_remote_stretches_are_exact_and_only_they_travel(content, server):
    reader = RangeReader(HASTY)
    address = f"{server.url}/a.bin"
    for offset, length in stretches(len(content)):
        assert reader.read(address, offset, length) == content[offset : offset + length]
    asked = [line for line in server.seen if line.startswith("GET")]
    assert asked and all("bytes=" in line for line in asked)
    server.seen.clear()
    fresh = RangeReader(HASTY)
    assert fresh.read(address, 10, 20, size=len(content)) == content[10:30]
    assert server.seen == ["GET /a.bin bytes=10-29"], "a known size spares a request"


def test_long_stretches_take_several_requests(content, server, monkeypatch):
    monkeypatch.setattr("mmpredict.shards.remote._REQUEST_BYTES", 70_000)
    assert RangeReader(HASTY).read(f"{server.url}/a.bin", 1, 250_000) == content[1:250_001]
    assert sum(line.startswith("GET") for line in server.seen) == 4


def test_a_remote_tar_is_scanned_without_its_content(tmp_path, server):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for n in range(4):
            info = tarfile.TarInfo(f"{n}.mp4")
            info.size = 1_000_000
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    found = scan_tar(RangeReader(HASTY).source(f"{server.url}/a.tar"))
    assert [m.name for m in found] == [f"{n}.mp4" for n in range(4)]
    spans = [line.rpartition("=")[2].split("-") for line in server.seen if "bytes=" in line]
    assert sum(int(b) - int(a) + 1 for a, b in spans) < 500_000


@pytest.mark.parametrize("cut", [None, 5])
def test_two_failures_are_overcome_and_three_are_not(content, server, cut):
    address = f"{server.url}/a.bin"
    server.fail, server.cut = 2, cut
    assert RangeReader(HASTY).read(address, 3, 40, size=len(content)) == content[3:43]
    assert server.fail == 0
    server.fail = 3
    with pytest.raises(MediaError) as failure:
        RangeReader(HASTY).read(address, 3, 40, size=len(content))
    assert address in str(failure.value) and "(3 attempts)" in str(failure.value)
    assert cut is not None or "answers 503" in str(failure.value)


def test_the_size_is_asked_again_too(content, server):
    server.fail = 0
    assert RangeReader(HASTY).size(f"{server.url}/a.bin") == len(content)


def test_pauses_grow(content, server):
    server.fail = 3
    start = time.monotonic()
    patient = Remote(timeout_s=5.0, tries=4, pause_s=0.05)
    RangeReader(patient).read(f"{server.url}/a.bin", 3, 40, size=len(content))
    assert time.monotonic() - start >= 0.05 + 0.1 + 0.2


@pytest.mark.parametrize("status", [401, 403, 410])
def test_a_refusal_is_not_asked_again(content, server, status):
    server.fail, server.status = 5, status
    with pytest.raises(MediaError, match=f"answers {status}"):
        RangeReader(HASTY).read(f"{server.url}/a.bin", 3, 40, size=len(content))
    assert len(server.seen) == 1


def test_a_missing_file_is_not_asked_again(content, server):
    with pytest.raises(MediaError, match="no such file on its server"):
        RangeReader(HASTY).read(f"{server.url}/none.bin", 0, 1)
    assert len(server.seen) <= 2  # HEAD, then GET


def test_a_server_that_hangs(content, server):
    server.hang_s = 3.0
    address = f"{server.url}/a.bin"
    start = time.monotonic()
    with pytest.raises(MediaError, match=r"silent for 0.2 s \(2 attempts\)") as failure:
        RangeReader(Remote(timeout_s=0.2, tries=2, pause_s=0.01)).read(address, 0, 9, size=300_000)
    assert address in str(failure.value)
    assert time.monotonic() - start < 2.0


def test_a_server_that_is_gone(tmp_path):
    server = Server(tmp_path)
    url = server.url
    server.server_close()
    with pytest.raises(MediaError, match=r"cannot be reached.*\(3 attempts\)"):
        RangeReader(HASTY).size(f"{url}/a.bin")


def test_a_server_without_ranges(content, server):
    server.ranges = False
    with pytest.raises(MediaError, match="ignores range requests") as failure:
        RangeReader(HASTY).read(f"{server.url}/a.bin", 1000, 50)
    assert f"{server.url}/a.bin" in str(failure.value)


def test_a_file_that_is_shorter_than_its_index_says(content, server):
    with pytest.raises(MediaError, match="ends before"):
        RangeReader(HASTY).read(f"{server.url}/a.bin", 299_000, 5000, size=304_000)
    with pytest.raises(MediaError, match="ends before"):
        RangeReader(HASTY).read(f"{server.url}/a.bin", 299_000, 5000)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a.bin", "data:,abc"])
def test_redirects_out_of_http_are_not_followed(content, server, target):
    server.redirect = target
    with pytest.raises(MediaError) as failure:
        RangeReader(HASTY).read(f"{server.url}/a.bin", 0, 9, size=300_000)
    assert f"{server.url}/a.bin" in str(failure.value)
    assert len(server.seen) == 1


def test_redirects_to_another_server_are_followed(tmp_path, content, server):
    with serving(tmp_path) as first:
        first.redirect = f"{server.url}/a.bin"
        assert RangeReader(HASTY).read(f"{first.url}/b.bin", 5, 9) == content[5:14]


def test_other_schemes_need_to_be_listed(tmp_path):
    import fsspec

    fsspec.filesystem("memory").pipe_file("/x/a.bin", b"0123456789")
    with pytest.raises(ValueError, match="data.remote.schemes"):
        RangeReader().read("memory://x/a.bin", 2, 3)
    allowed = RangeReader(Remote(schemes=("file", "memory")))
    assert allowed.size("memory://x/a.bin") == 10
    assert allowed.read("memory://x/a.bin", 2, 3) == b"234"
    with pytest.raises(ValueError, match="data.remote.schemes: nosuch"):
        RangeReader(Remote(schemes=("nosuch",))).read("nosuch://x/a.bin", 2, 3)


# Addresses


def test_braces_and_folders(tmp_path):
    for name in ("b/000.tar", "a.tar", "b/001.tar", ".hidden/x.tar", "b/x.txt", "{odd}.tar"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    here = str(tmp_path)
    a, odd, zero, one = (f"{here}/{n}" for n in ("a.tar", "{odd}.tar", "b/000.tar", "b/001.tar"))
    assert list_addresses(here) == [a, zero, one, odd]
    assert list_addresses(f"{here}/b/{{000..001}}.tar") == [zero, one]
    assert list_addresses([f"{here}/{{a,b/001}}.tar", zero]) == [a, one, zero]
    assert list_addresses(odd) == [odd]
    assert list_addresses("http://h/{a,b}-{08..11}.tar?t={1..1}") == [
        f"http://h/{letter}-{n}.tar?t=1" for letter in "ab" for n in ("08", "09", "10", "11")
    ]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("pipe:touch CANARY", "not an address"),
        ("pipe://touch CANARY", "data.remote.schemes"),
        ("PIPE:touch CANARY", "not an address"),
        ("zip://a::http://h/a.tar", "not an address"),
        ("simplecache::http://h/a.tar", "not an address"),
        ("ftp://h/a.tar", "data.remote.schemes"),
        ("s3://bucket/a.tar", "data.remote.schemes"),
        ("/nowhere/a.tar", "no such file or folder"),
        ("/nowhere/{000..003}.tar", "/nowhere/000.tar: no such file"),
        ("http://h/{9..1}.tar", "smaller number"),
        ("http://h/{0..9999999999}.tar", "over the limit"),
        ("http://h/{0..99999}{0..99999}.tar", "over the limit"),
        (".", "holds no .tar file"),
    ],
)
def test_addresses_that_are_refused(tmp_path, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        list_addresses(given)
    assert not list(tmp_path.iterdir()), "nothing ran"


def test_secrets_are_not_shown():
    assert shown("https://user:word@host:8/a/b.tar?token=x#y") == "https://host:8/a/b.tar"
    assert shown("a b.tar") == "a b.tar"


def test_neighbours_of_an_address(tmp_path):
    assert beside("http://u:p@h/a/index.jsonl?t=1", "0.tar") == "http://u:p@h/a/0.tar?t=1"
    assert beside("http://h/a/", "0.tar") == "http://h/a/0.tar"
    assert beside(str(tmp_path), "0.tar") == str(tmp_path / "0.tar")
    assert local_path(Path("/a b/c%.tar").as_uri()) == Path("/a b/c%.tar")
