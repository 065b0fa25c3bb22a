"""Shards give the documents that their files give, exactly once, and never a damaged one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datamodules import AudioVisual, Skipped
from datamodules.shards import Shards
from mmpredict.schema import Clip, Modality, Series, Stop, TextPiece, UserError
from mmpredict.shards import Remote, Store
from mmpredict.tokens import Codecs, MelChunks, Patches, TextTokens, Vectors
from tests.datamodules.small import (
    CODECS,
    FPS,
    RATE,
    SIZE,
    SOUND,
    STREAMS,
    SUBSET_IDS,
    SUBSETS,
    VIDEO,
    all_documents,
    codecs,
    loading,
    recording,
    same,
    text_of,
    write_video,
)
from tests.shards.server import serving
from tests.shards.stored import of_clip, of_file, write_store
from tests.shards.test_store import damage, full

SPLITS = ("train", "val", "test")
REAL = Path(os.environ.get("MMPREDICT_REAL_CLIPS", "~/.cache/mmpredict/real_clips")).expanduser()


def shards(root: Path | str, *streams: str, **options: object) -> Shards:
    how = {"clip_seconds": 0.5, "loading": loading()} | codecs(*streams or STREAMS)
    data = Shards(str(root), **how | options)
    data.setup()
    return data


def every(data: Shards) -> list[object]:
    return [row for split in SPLITS for row in all_documents(data.documents(split))]


def raw(folder: Path, count: int = 6, form: str = "raw", **options: object) -> Path:
    return write_store(folder, [of_clip(full(n), form) for n in range(count)], **options)


def kept(folder: Path, count: int = 4) -> Path:
    for n in range(count):
        write_video(folder / f"files/v{n}.mp4", 1.3, n)
        (folder / f"files/v{n}.srt").write_text(
            "1\n00:00:00,100 --> 00:00:01,200\nsome words that are said\n"
        )
    said = Clip(texts=(TextPiece("some words that are said", 0.1, 1.2),))
    files = sorted((folder / "files").glob("*.mp4"))
    return write_store(folder / "shards", [of_file(path, said) for path in files])


# Documents


@pytest.mark.parametrize("subset", SUBSETS, ids=SUBSET_IDS)
def test_prepared_samples_are_the_clips_that_were_prepared(tmp_path, subset):
    data = shards(raw(tmp_path / "s"), *subset)
    expected = [data.encode(full(n)) for n in range(6)]
    found = {
        data.documents(s).name(i): row
        for s in SPLITS
        for i, row in enumerate(all_documents(data.documents(s)))
    }
    assert len(found) == 6
    for name, row in found.items():
        assert same(row, expected[int(name[-4:])])


def test_kept_files_give_the_windows_of_the_folder(tmp_path):
    """The same rows as datamodules.AudioVisual makes of the same files, window by window."""
    from_shards = shards(kept(tmp_path))
    folder = AudioVisual(
        str(tmp_path / "files"), **codecs(*STREAMS), clip_seconds=0.5, loading=loading()
    )
    folder.setup()
    rows = {}
    for data in (from_shards, folder):
        for split in SPLITS:
            documents = data.documents(split)
            for index in range(len(documents)):
                source, number = documents.find(index)
                key = int(source.path.stem[-1]), number
                rows.setdefault(key, []).append(documents.document(0, index))
    assert len(rows) == 4 * 3
    assert all(same(*pair) for pair in rows.values())


def test_neighbouring_windows_are_read_in_one_pass_and_are_the_same(tmp_path):
    documents = shards(kept(tmp_path)).documents("train")
    runs = documents.runs()
    assert [n for run in runs for n in run] == list(range(len(documents)))
    for run in runs:
        alone = [documents.document(0, n) for n in run]
        assert all(map(same, documents.read(0, list(run)), alone))


def test_whole_files_are_one_document_each(tmp_path):
    data = shards(kept(tmp_path), clip_seconds=None)
    rows = every(data)
    assert len(rows) == 4
    assert all(len(row.contents[VIDEO]) == 4 * round(1.3 * FPS) for row in rows)
    assert text_of(rows) == ["some words that are said"] * 4


def test_files_clips_and_texts_in_one_folder(tmp_path):
    """As of a folder that was kept as it is: its texts are passages, prepared as clips are."""
    passages = [Clip(texts=(TextPiece(f"passage {n}"),)) for n in range(4)]
    files = [of_file(write_video(tmp_path / f"{n}.mp4", 1.3, n)) for n in range(4)]
    clips = [of_clip(full(n), "raw") for n in range(4)]
    items = [*files, *(of_clip(clip, "raw") for clip in passages), *clips]
    for workers in (0, 2):
        data = shards(write_store(tmp_path / "s", items), loading=loading(workers=workers))
        rows = every(data)
        assert len(rows) == 4 * 3 + 4 + 4 and not any(isinstance(row, Skipped) for row in rows)
        found = [text for text in text_of(rows) if text.startswith("passage")]
        assert sorted(found) == [f"passage {n}" for n in range(4)]
        assert sum(batch.num_tokens for batch in data.train_dataloader()) > 0


@pytest.mark.parametrize("make", [raw, kept])
def test_workers_give_the_same_batches(tmp_path, make):
    root = make(tmp_path)
    root = root if make is kept else tmp_path
    runs = []
    for workers in (0, 2):
        data = shards(root, loading=loading(workers=workers, timeout_s=60.0), seed=3)
        loader = data.train_dataloader()
        runs.append([batch for _ in range(2) for batch in loader])
    assert len(runs[0]) == len(runs[1]) > 0
    assert all(map(same, *runs))


def test_over_http_as_from_disk(tmp_path):
    root = kept(tmp_path)
    near = every(shards(root))
    with serving(tmp_path) as server:
        hasty = Remote(timeout_s=5.0, pause_s=0.01)
        data = shards(f"{server.url}/shards", remote=hasty, loading=loading(workers=2))
        assert all(map(same, every(data), near))
        assert sum(batch.num_tokens for batch in data.train_dataloader()) > 0
        here, there = shards(root).fingerprint(), data.fingerprint()
    assert here == there and set(here) == {"000000.tar"}


def test_series_come_along(tmp_path):
    vectors = {"action": Vectors(width=2, hz=2.0)}
    actions = {
        "action": Series(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0.0, 0.5]).double())
    }
    clips = [replace(full(n), series=actions) for n in range(4)]
    root = write_store(tmp_path / "s", [of_clip(clip, "raw") for clip in clips])
    data = shards(root, series=vectors)
    rows = every(data)
    assert len(rows) == 4 and all(3 in row.contents for row in rows)
    (first,) = [row for row in rows if same(row, data.encode(clips[0]))]
    assert torch.equal(first.contents[3], actions["action"].values_TD)


# Lengths


@pytest.mark.parametrize("subset", SUBSETS, ids=SUBSET_IDS)
@pytest.mark.parametrize("form", ["raw", "encoded"])
def test_lengths_are_exact_where_the_codecs_are_those_of_the_index(tmp_path, subset, form):
    root = raw(tmp_path / "s", form=form, codecs=Codecs(**CODECS))
    data = shards(root, *subset)
    for split in SPLITS:
        documents = data.documents(split)
        for index, row in enumerate(all_documents(documents)):
            assert documents.length(0, index) == row.modality.shape[1]


@pytest.mark.parametrize(
    "other",
    [
        {"video": Patches(size=SIZE, patch=4, fps=FPS)},
        {"video": Patches(size=SIZE, patch=8, fps=FPS / 2)},
        {"audio": MelChunks(sample_rate=RATE, channels=1, num_mels=8, hops=2, chunk_s=0.08)},
        {"text": TextTokens(kind="bpe", vocab_size=270)},
    ],
    ids=["patch", "fps", "chunk", "bpe"],
)
def test_lengths_are_unknown_for_other_codecs(tmp_path, other):
    data = shards(raw(tmp_path / "s", codecs=Codecs(**CODECS)), **other)
    assert data.documents("train").length(0, 0) is None
    assert not isinstance(data.documents("train").document(0, 0), Skipped)


def test_lengths_of_windows_are_unknown(tmp_path):
    assert shards(kept(tmp_path)).documents("train").length(0, 0) is None


# Rates


def test_half_the_rate_is_every_second_frame(tmp_path):
    root = raw(tmp_path / "s")
    half = shards(root, "video", video=Patches(size=SIZE, patch=8, fps=FPS / 2))
    for row, whole in zip(every(half), every(shards(root, "video")), strict=True):
        frames = whole.contents[VIDEO].unflatten(0, (-1, 4))
        assert torch.equal(row.contents[VIDEO].unflatten(0, (-1, 4)), frames[::2])
        assert torch.equal(row.end_s[0, ::4], torch.arange(2).double() / (FPS / 2))


def test_ears_are_mixed_or_repeated(tmp_path):
    def stereo(n: int) -> Clip:
        clip = full(n)
        return replace(clip, waveform_CS=torch.cat([clip.waveform_CS, -clip.waveform_CS]))

    root = write_store(tmp_path / "s", [of_clip(stereo(n), "raw") for n in range(3)])
    mono = shards(root, "audio")
    silent = mono.encode(replace(full(0), waveform_CS=torch.zeros(1, RATE // 2)))
    assert all(same(row.map(torch.clone), row) for row in every(mono))
    assert {int(row.contents[0].float().abs().sum()) for row in every(mono)} == {
        int(silent.contents[0].float().abs().sum())
    }
    both = shards(raw(tmp_path / "m"), "audio", audio=replace(SOUND, channels=2))
    for row in every(both):
        left, right = row.contents[0].flatten(1).chunk(2, dim=1)
        assert torch.equal(left, right)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"video": Patches(size=SIZE, patch=8, fps=3.0)}, ["8 frames a second", "3", "--fps 3"]),
        ({"video": Patches(size=SIZE, patch=8, fps=16.0)}, ["8 frames a second", "16"]),
        ({"video": Patches(size=32, patch=8, fps=FPS)}, ["16x16", "32x32", "video.size"]),
        ({"audio": MelChunks(sample_rate=16000, channels=1)}, ["8000 Hz", "16000 Hz"]),
    ],
)
def test_rates_that_cannot_be_had_without_loss(tmp_path, other, words):
    with pytest.raises(UserError) as refusal:
        shards(raw(tmp_path / "s"), **other)
    for word in ["000000.tar!k0000", "prepare the data again", "data.", *words]:
        assert word in str(refusal.value)


def test_a_stream_that_the_run_leaves_out_may_have_any_rate(tmp_path):
    data = shards(raw(tmp_path / "s"), "audio", "text", video=None)
    assert len(every(data)) == 6


# Splits


def test_the_split_of_the_shards_is_kept(tmp_path):
    splits = ["train", "val", "test", "train", "val", "train"]
    data = shards(raw(tmp_path / "s", splits=splits))
    for split in SPLITS:
        documents = data.documents(split)
        names = [documents.name(i) for i in range(len(documents))]
        assert names == [
            f"000000.tar!k{n:04d}" if n < 4 else f"000001.tar!k{n:04d}"
            for n, s in enumerate(splits)
            if s == split
        ]


@pytest.mark.parametrize("seed", range(3))
def test_all_samples_of_a_source_share_its_split(tmp_path, seed):
    sources = [(n + seed) % 7 for n in range(28)]
    clips = [of_clip(replace(full(n), frames_TCHW=None, times_s=None), "raw") for n in range(28)]
    data = shards(write_store(tmp_path / "s", clips, sources=sources), "audio")
    found = {}
    for split in SPLITS:
        for number in data._samples[split][0].tolist():
            found.setdefault(sources[number], set()).add(split)
    assert all(len(splits) == 1 for splits in found.values())
    assert set().union(*found.values()) == set(SPLITS)


def test_what_a_stored_split_lacks_is_held_out_from_training(tmp_path):
    splits = ["train"] * 8 + ["val"] * 2
    data = shards(raw(tmp_path / "s", 10, splits=splits))
    sizes = {split: len(data.documents(split)) for split in SPLITS}
    assert sizes["val"] == 2 and sizes["test"] >= 1 and sum(sizes.values()) == 10


@pytest.mark.parametrize("make", [raw, kept])
def test_one_source_holds_out_its_last_documents(tmp_path, make):
    root = raw(tmp_path / "s", 10, sources=[0] * 10) if make is raw else kept(tmp_path, 1)
    data = shards(root)
    assert all(len(data.documents(split)) >= 1 for split in SPLITS)
    assert same(data.documents("test").document(0, 0), every(data)[-1])


# Damage


@pytest.mark.parametrize("make", [raw, kept])
def test_a_flipped_bit_is_skipped_by_name_and_the_run_goes_on(tmp_path, make):
    root = raw(tmp_path / "s", 8) if make is raw else kept(tmp_path, 6)
    whole = every(shards(root))
    store = Store(root)
    damage(store, store.index.samples[2], "video.npy" if make is raw else "mp4", 4000)
    data = shards(root)
    rows = every(data)
    skipped = [row for row in rows if isinstance(row, Skipped)]
    suffix = "video.npy" if make is raw else "mp4"
    assert {row.source for row in skipped} == {f"000000.tar!k0002.{suffix}"}
    assert {row.kind for row in skipped} == {"hash"}
    assert not any(row.harmless for row in skipped)
    assert all(isinstance(a, Skipped) or same(a, b) for a, b in zip(rows, whole, strict=True))
    assert sum(batch.num_tokens for batch in data.train_dataloader()) > 0


def test_a_missing_shard_names_its_samples(tmp_path):
    root = raw(tmp_path / "s", 20)
    (root / "000004.tar").unlink()
    skipped = [row for row in every(shards(root)) if isinstance(row, Skipped)]
    assert len(skipped) == 4 and all("no such file" in row.reason for row in skipped)


def test_what_cannot_be_trained_on(tmp_path):
    with pytest.raises(UserError, match="mmpredict prepare"):
        shards(tmp_path / "none")
    with pytest.raises(UserError, match="holds no sample"):
        shards(write_store(tmp_path / "empty", []))
    with pytest.raises(Stop, match="k0000: has no stream that the recipe uses"):
        silent = replace(recording(0.5, sound=False), texts=())
        shards(write_store(tmp_path / "v", [of_clip(silent, "raw")] * 3), "audio")
    with pytest.raises(ValueError, match="context_length is 12"):
        shards(raw(tmp_path / "s"), loading=loading(context_length=12))
    with pytest.raises(ValueError, match="held_out_share=0.5"):
        Shards(str(tmp_path), held_out_share=0.5)


def test_settings_without_a_say_are_said(tmp_path, capsys):
    raw(tmp_path / "s")
    shards(tmp_path / "s", clip_seconds=0.5)
    assert "no say" not in capsys.readouterr().out
    shards(tmp_path / "s", clip_seconds=1.0)
    assert "prepared as clips, the longest with 0.5 s" in capsys.readouterr().out


def test_a_vocabulary_is_trained_on_the_training_texts(tmp_path):
    for root in (raw(tmp_path / "s"), kept(tmp_path)):
        data = shards(root, text=TextTokens(kind="bpe", vocab_size=270))
        assert data.codecs.text.is_fitted
        rows = all_documents(data.documents("train"))
        assert all(Modality.TEXT in row.contents for row in rows)


def test_changed_shards_have_another_fingerprint(tmp_path):
    before = shards(raw(tmp_path / "a")).fingerprint()
    changed = [of_clip(full(n + (n == 5)), "raw") for n in range(6)]
    after = shards(write_store(tmp_path / "b", changed)).fingerprint()
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == ["000001.tar"]


@pytest.mark.skipif(not REAL.is_dir(), reason="run examples/fetch_real_clips.py first")
def test_real_clips_kept_in_shards(tmp_path):
    """Windows from a shard are those of the same files in a folder."""
    files = [
        REAL / name for name in ("small.mp4", "silence.wav", "bikes.mp4") if (REAL / name).is_file()
    ]
    root = write_store(tmp_path / "s", [of_file(path) for path in files])
    (tmp_path / "f").mkdir()
    for path in files:
        (tmp_path / "f" / path.name).symlink_to(path)
    how = codecs(*STREAMS) | {"loading": loading(context_length=512), "clip_seconds": 2.0}
    totals = []
    for data in (Shards(str(root), **how), AudioVisual(str(tmp_path / "f"), **how)):
        data.setup()
        rows = [row for s in SPLITS for row in all_documents(data.documents(s))]
        assert not any(isinstance(row, Skipped) for row in rows)
        totals.append(
            sorted(row.contents[m].float().sum().item() for row in rows for m in row.contents)
        )
    assert totals[0] == totals[1]
