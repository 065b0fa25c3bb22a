"""The index: what is written is read, lazily and from bytes alone; equal content, equal bytes."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace

import pytest

from mmpredict.schema import UserError
from mmpredict.shards.index import (
    INDEX_NAME,
    Header,
    Index,
    IndexDamaged,
    Member,
    Sample,
    Shard,
    SkippedSource,
    Source,
    codec_signatures,
    parse_index,
    read_index,
    write_index,
)
from mmpredict.tokens import Codecs, MelChunks, Patches, TextTokens

DIGEST = hashlib.sha256(b"x").hexdigest()


def sample(number: int) -> Sample:
    return Sample(
        key=f"sub/film-{number:05d}",
        shard=number // 3,
        members=(Member("json", 512, 20, DIGEST), Member("video.npy", 1536, 9000 + number, DIGEST)),
        form="raw",
        duration_s=0.1 * number,
        streams={"video": {"frames": 2, "height": 16, "width": 16, "fps": 4.0}},
        source=number // 2,
        start_s=1 / 3 * number,
        split=(None, "train", "val")[number % 3],
        tokens={"video": 8},
        weight=float(number),
    )


def index_of(count: int) -> Index:
    return Index(
        Header({"form": "raw", "size": [16, 16]}, codec_signatures(None)),
        tuple(Shard(f"{n:06d}.tar", 10_000, DIGEST, 3) for n in range((count + 2) // 3)),
        tuple(Source(f"odd \udcff \u65e5 {n}.mp4", n, DIGEST) for n in range((count + 1) // 2)),
        (SkippedSource("bad.mp4", "limits", 'over "all"\nlimits', "video"),),
        tuple(sample(n) for n in range(count)),
    )


@pytest.mark.parametrize("count", [0, 1, 7])
def test_what_is_written_is_read(count, tmp_path):
    made = index_of(count)
    fingerprint = write_index(tmp_path, made)
    read = read_index(tmp_path)
    assert replace(read, samples=tuple(read.samples), sha256="") == made
    assert read.fingerprint == fingerprint
    assert [path.name for path in tmp_path.iterdir()] == [INDEX_NAME]


def test_samples_are_a_sequence_that_travels(tmp_path):
    write_index(tmp_path, index_of(7))
    samples = pickle.loads(pickle.dumps(read_index(tmp_path))).samples
    assert samples[-1] == samples[6] == sample(6) and samples[2:4] == [sample(2), sample(3)]
    assert [row["tokens"]["video"] for row in map(samples.plain, range(7))] == [8] * 7
    assert samples[3].member("video.npy").size == 9003 and samples[3].member("flac") is None
    with pytest.raises(IndexError):
        samples[7]


def test_the_fingerprint_changes_with_any_content(tmp_path):
    made = index_of(4)
    first = write_index(tmp_path, made)
    assert write_index(tmp_path, made) == first
    others = [
        replace(made, samples=made.samples[:3]),
        replace(made, samples=(*made.samples[:3], replace(made.samples[3], weight=9.0))),
        replace(made, sources=(replace(made.sources[0], sha256="0" * 64), *made.sources[1:])),
        replace(made, header=Header({"form": "raw"}, made.header.codecs)),
    ]
    assert len({first, *(write_index(tmp_path, other) for other in others)}) == 5


def test_every_cut_and_every_flipped_byte_is_noticed(tmp_path):
    write_index(tmp_path, index_of(3))
    data = (tmp_path / INDEX_NAME).read_bytes()
    for length in range(0, len(data) - 1, 7):
        with pytest.raises(IndexDamaged):
            parse_index(data[:length], "x")
    for place in range(0, len(data), 11):
        bad = bytearray(data)
        bad[place] ^= 1
        with pytest.raises(UserError):
            parse_index(bytes(bad), "x")


def test_no_index_names_the_remedy(tmp_path):
    with pytest.raises(UserError, match="mmpredict prepare SOURCE"):
        read_index(tmp_path)


def test_signatures_are_equal_exactly_if_the_counts_must_be():
    def signed(**codecs):
        return codec_signatures(Codecs(**codecs))

    base = signed(audio=MelChunks(), video=Patches(size=16), text=TextTokens())
    assert base == signed(
        audio=MelChunks(), video=Patches(size=(16, 16)), text=TextTokens(vocab_size=300)
    )
    assert base["video"] != signed(video=Patches(size=16, fps=5))["video"]
    assert base["audio"] != signed(audio=MelChunks(chunk_s=0.08))["audio"]
    corpus = ["the red ball rolls to the left of the red box"] * 20
    one, two = (TextTokens(kind="bpe", vocab_size=size).fit(corpus) for size in (260, 262))
    assert signed(text=one)["text"] != signed(text=two)["text"] != base["text"]
    assert signed(text=one)["video"] is None
