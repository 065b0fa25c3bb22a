"""Tables of media become documents: found by their schema, split by their names, read by groups."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from datamodules import AudioVisual, Skipped
from datamodules.parquet import Parquet, split_named
from mmpredict.media import Limits
from mmpredict.schema import Stop, UserError
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
    text_of,
    write_sound,
    write_video,
)
from tests.datamodules.test_webdataset import picture

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

SPLITS = ("train", "val", "test")
MEDIA = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
REAL = Path(os.environ.get("MMPREDICT_REAL_CLIPS", "~/.cache/mmpredict/real_clips")).expanduser()


def table(
    path: Path,
    columns: dict[str, list[Any]],
    types: dict[str, Any],
    *,
    told: dict[str, str] | None = None,
    group: int = 3,
) -> Path:
    """A file as Hugging Face writes it; `told` are its features."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = pa.table({name: pa.array(values, types[name]) for name, values in columns.items()})
    if told is not None:
        features = {name: {"_type": kind} for name, kind in told.items()}
        about = json.dumps({"info": {"features": features}}).encode()
        made = made.replace_schema_metadata({b"huggingface": about})
    pq.write_table(made, path, row_group_size=group)
    return path


def images(path: Path, count: int = 8, first: int = 0) -> Path:
    cells = [{"bytes": picture(first + n), "path": f"{n}.png"} for n in range(count)]
    columns = {"image": cells, "text": [f"picture {first + n}" for n in range(count)]}
    return table(path, columns, {"image": MEDIA, "text": pa.string()}, told={"image": "Image"})


def videos(root: Path, count: int = 6, *, embedded: bool = True) -> Path:
    cells = []
    for n in range(count):
        path = write_video(root / f"media/v{n}.mp4", 1.3, n)
        cells.append({"bytes": path.read_bytes() if embedded else None, "path": f"media/v{n}.mp4"})
    return table(
        root / "data.parquet",
        {"clip": cells, "caption": [f"words of clip {n}" for n in range(count)]},
        {"clip": MEDIA, "caption": pa.string()},
        told={"clip": "Video"},
        group=2,
    )


def parquet(root: Path, *streams: str, **options: object) -> Parquet:
    how = {"clip_seconds": 0.5, "loading": loading()} | codecs(*streams or STREAMS)
    data = Parquet(str(root), **how | options)
    data.setup()
    return data


def every(data: Parquet) -> list[object]:
    return [row for split in SPLITS for row in all_documents(data.documents(split))]


# Documents


def test_images_with_text(tmp_path, capsys):
    data = parquet(images(tmp_path / "a.parquet"), "video", "text")
    rows = every(data)
    assert sorted(text_of(rows)) == [f"picture {n}" for n in range(8)]
    for row in rows:
        n = int(text_of([row])[0].split()[1])
        assert row.contents[VIDEO].float().mean() == pytest.approx(20 * n, abs=1)
    assert "image from 'image', text from 'text'" in capsys.readouterr().out


@pytest.mark.parametrize("embedded", [True, False])
def test_windows_are_those_of_the_same_files_in_a_folder(tmp_path, embedded):
    data = parquet(videos(tmp_path, embedded=embedded))
    for n in range(6):
        (tmp_path / f"media/v{n}.txt").write_text(f"words of clip {n}")
    folder = AudioVisual(
        str(tmp_path / "media"), **codecs(*STREAMS), clip_seconds=0.5, loading=loading()
    )
    folder.setup()
    rows: dict[tuple[int, int], list[object]] = {}
    for module in (data, folder):
        for split in SPLITS:
            documents = module.documents(split)
            for index in range(len(documents)):
                source, number = documents.find(index)
                place = source.holder.place if module is data else int(source.path.stem[1:])
                rows.setdefault((place, number), []).append(documents.document(0, index))
    assert len(rows) == 6 * 3
    assert all(same(*pair) for pair in rows.values())


def test_sounds(tmp_path):
    cells = [
        {"bytes": write_sound(tmp_path / f"{n}.wav", 0.5, n).read_bytes(), "path": None}
        for n in range(5)
    ]
    columns = {"audio": cells, "sentence": [f"spoken {n}" for n in range(5)], "id": list("abcde")}
    types = {"audio": MEDIA, "sentence": pa.string(), "id": pa.string()}
    data = parquet(table(tmp_path / "a.parquet", columns, types), clip_seconds=None)
    rows = every(data)
    assert all(set(row.contents) == {AUDIO, TEXT} for row in rows)
    assert sorted(text_of(rows)) == [f"spoken {n}" for n in range(5)]


def test_text_alone_and_empty_rows(tmp_path, capsys):
    lines = ["a line", "", None, "  ", "another line", "the third"]
    path = table(tmp_path / "a.parquet", {"words": lines}, {"words": pa.string()})
    data = parquet(path, "text")
    assert sorted(text_of(every(data))) == ["a line", "another line", "the third"]
    assert not data.skip_log.reasons
    assert "3 rows hold neither media nor text" in capsys.readouterr().out


def test_several_texts_in_their_order(tmp_path):
    columns = {
        "answer": ["yes", "no", "so"],
        "question": ["is it", "was it", "so"],
        "captions": [["one", "two"], [], ["three"]],
    }
    types = {"answer": pa.string(), "question": pa.string(), "captions": pa.list_(pa.string())}
    path = table(tmp_path / "a.parquet", columns, types)
    rows = every(parquet(path, "text", text_columns=["question", "captions", "answer"]))
    said = [tuple(text_of([row])) for row in rows]
    assert sorted(said) == [
        ("is it", "one", "two", "yes"),
        ("so", "three", "so"),
        ("was it", "no"),
    ]
    found = parquet(path, "text").documents("train").sources[0].holder.table.columns.texts
    assert found == ("captions", "question", "answer")


@pytest.mark.parametrize("clip_seconds", [0.5, None])
def test_workers_give_the_same_batches(tmp_path, clip_seconds):
    path = videos(tmp_path, 5)
    runs = []
    for workers in (0, 2):
        how = loading(workers=workers, timeout_s=60.0)
        data = parquet(path, loading=how, seed=3, clip_seconds=clip_seconds)
        loader = data.train_dataloader()
        runs.append([batch for _ in range(2) for batch in loader])
    assert len(runs[0]) == len(runs[1]) > 0
    assert all(map(same, *runs))


def test_rows_of_a_group_are_read_together(tmp_path, monkeypatch):
    data = parquet(images(tmp_path / "train.parquet", 30), "video", "text")
    documents = data.documents("train")
    runs = documents.runs()
    assert [n for run in runs for n in run] == list(range(len(documents)))
    groups = [{documents.find(n)[0].holder.group for n in run} for run in runs]
    assert all(len(group) == 1 for group in groups) and len(runs) <= 10
    table_ = documents.sources[0].holder.table
    table_._forget()
    reads = []
    read = type(table_)._read
    monkeypatch.setattr(
        type(table_), "_read", lambda t, g, c: reads.append((g, *c)) or read(t, g, c)
    )
    for run in runs:
        assert all(map(same, documents.read(0, list(run)), [documents.document(0, n) for n in run]))
    assert len(reads) == len(set(reads)), "each group once"


def test_a_pickled_module_reads_on(tmp_path):
    data = parquet(images(tmp_path / "a.parquet"), "video", "text")
    first = every(data)
    assert all(map(same, every(pickle.loads(pickle.dumps(data))), first))


def test_a_run_on_sound_reads_the_sound_of_videos(tmp_path):
    data = parquet(videos(tmp_path), "audio")
    assert all(set(row.contents) == {AUDIO} for row in every(data))


# Splits


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00005.parquet", "train"),
        ("data/validation-00000-of-00001.parquet", "val"),
        ("test/0000.parquet", "test"),
        ("default/val/part.0.parquet", "val"),
        ("dev.parquet", "val"),
        ("a_test_b.parquet", "test"),
        ("0000.parquet", None),
        ("strain-1.parquet", None),
        ("testing.parquet", None),
        ("train/test-1.parquet", "test"),
    ],
)
def test_splits_by_name(name, split):
    assert split_named(name) == split


def test_files_of_a_split_stay_there(tmp_path):
    images(tmp_path / "data/train-0.parquet", 6)
    images(tmp_path / "data/validation-0.parquet", 3, 6)
    images(tmp_path / "data/test-0.parquet", 2, 9)
    data = parquet(tmp_path, "video", "text")
    said = {s: sorted(text_of(all_documents(data.documents(s)))) for s in SPLITS}
    numbers = {s: [int(text.split()[1]) for text in said[s]] for s in SPLITS}
    assert numbers == {"train": [*range(6)], "val": [6, 7, 8], "test": [10, 9]}


def test_without_names_rows_are_held_out_by_hash(tmp_path):
    images(tmp_path / "0000.parquet", 30)
    data = parquet(tmp_path, "video")
    sizes = [len(data.documents(s)) for s in SPLITS]
    assert sum(sizes) == 30 and min(sizes) >= 1 and sizes[0] > 15
    again = parquet(tmp_path, "video", seed=5)
    assert [len(again.documents(s)) for s in SPLITS] == sizes


# Columns


def test_columns_that_are_named(tmp_path):
    columns = {
        "left": [{"bytes": picture(n), "path": None} for n in range(4)],
        "right": [{"bytes": picture(n + 4), "path": None} for n in range(4)],
        "raw": [picture(n + 8) for n in range(4)],
        "number": [1, 2, 3, 4],
        "note": ["a", "b", "c", "d"],
    }
    types = {
        "left": MEDIA,
        "right": MEDIA,
        "raw": pa.binary(),
        "number": pa.int64(),
        "note": pa.string(),
    }
    path = table(tmp_path / "a.parquet", columns, types)
    with pytest.raises(UserError, match="no column that the recipe uses among left, right, raw"):
        parquet(path, "video")
    for name, first in (("left", 0), ("right", 4), ("raw", 8)):
        rows = every(parquet(path, "video", image_column=name))
        means = sorted(float(row.contents[VIDEO].float().mean()) for row in rows)
        assert means == pytest.approx([20 * (first + n) for n in range(4)], abs=1)
    with pytest.raises(ValueError, match=r"no column 'middle'; it has left \(media\)"):
        parquet(path, "video", image_column="middle")
    with pytest.raises(ValueError, match="column 'number' is int64; image is read from"):
        parquet(path, "video", image_column="number")
    with pytest.raises(ValueError, match="column 'number' is int64, not text"):
        parquet(path, "text", text_columns=["number"])
    data = parquet(path, "video", "text", image_column="left", text_columns=["note"])
    assert sorted(text_of(every(data))) == ["a", "b", "c", "d"]


def test_settings_of_the_columns_are_part_of_the_checkpoint(tmp_path):
    path = images(tmp_path / "a.parquet")
    one, two = parquet(path, "text"), parquet(path, "text", text_columns=["text"])
    assert one.settings() != two.settings()
    assert one.fingerprint() == two.fingerprint() and set(one.fingerprint()) == {"a.parquet"}


# Bad data


def test_broken_and_empty_cells_are_skipped_by_name(tmp_path):
    cells = [{"bytes": picture(n), "path": None} for n in range(12)]
    cells[3] = {"bytes": b"no picture", "path": None}
    cells[5] = None
    cells[7] = {"bytes": None, "path": None}
    columns = {"image": cells, "text": ["x"] * 12}
    path = table(tmp_path / "a.parquet", columns, {"image": MEDIA, "text": pa.string()})
    rows = every(parquet(path, "video", "text"))
    skipped = {row.source: row.reason for row in rows if isinstance(row, Skipped)}
    assert set(skipped) == {"a.parquet!3.png", "a.parquet!5", "a.parquet!7"}
    assert "'image' is empty" in skipped["a.parquet!5"]
    assert sum(not isinstance(row, Skipped) for row in rows) == 9


@pytest.mark.parametrize(
    "reference",
    [
        "../secret.png",
        "/etc/passwd",
        "http://127.0.0.1:1/x.png",
        "file:///etc/passwd",
        "a/../../secret.png",
        "link/secret.png",
        "x\0y",
    ],
)
def test_references_stay_below_the_root(tmp_path, reference):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(picture(1))
    (root / "link").symlink_to(tmp_path)
    for n in range(3):
        (root / f"{n}.png").write_bytes(picture(n))
    cells = [{"bytes": None, "path": p} for p in ("0.png", "1.png", "2.png", reference)]
    path = table(root / "a.parquet", {"image": cells}, {"image": MEDIA})
    rows = every(parquet(path, "video"))
    (skipped,) = [row for row in rows if isinstance(row, Skipped)]
    assert skipped.source == "a.parquet!3" and "no path below" in skipped.reason


def test_a_damaged_file_is_left_out_by_name(tmp_path):
    for n in range(3):
        images(tmp_path / f"train-{n}.parquet", 4, 4 * n)
    (tmp_path / "train-1.parquet").write_bytes(b"PAR1 no table PAR1")
    data = parquet(tmp_path, "video", "text")
    assert len(every(data)) == 8
    ((name, reason),) = data.skip_log.reasons.items()
    assert name.endswith("train-1.parquet") and "cannot be read as parquet" in reason


def test_a_broken_video_and_one_over_the_limit(tmp_path):
    videos(tmp_path, 4)
    cells = [{"bytes": (tmp_path / f"media/v{n}.mp4").read_bytes(), "path": None} for n in range(4)]
    cells += [{"bytes": b"text", "path": "x.mp4"}]
    path = table(tmp_path / "b.parquet", {"video": cells}, {"video": MEDIA})
    data = parquet(path, "video")
    assert list(data.skip_log.reasons) == ["b.parquet!4"]
    with pytest.raises(Stop, match="Limits.max_duration_s"):
        parquet(path, "video", limits=Limits(max_duration_s=1.0))


def test_what_cannot_be_trained_on(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        parquet(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no .parquet file"):
        parquet(tmp_path)
    with pytest.raises(ValueError, match="not an address"):
        parquet("http://127.0.0.1:1/a.parquet")


def test_a_missing_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    images(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r'pip install "mmpredict\[parquet\]"'):
        parquet(tmp_path)


def test_a_vocabulary_is_trained_on_the_training_texts(tmp_path):
    data = parquet(images(tmp_path / "a.parquet"), text=TextTokens(kind="bpe", vocab_size=270))
    assert data.codecs.text.is_fitted


@pytest.mark.skipif(not REAL.is_dir(), reason="run examples/fetch_real_clips.py first")
def test_real_clips_in_a_table(tmp_path):
    names = [name for name in ("small.mp4", "bikes.mp4", "park.mp4") if (REAL / name).is_file()]
    cells = [{"bytes": (REAL / name).read_bytes(), "path": name} for name in names]
    path = table(tmp_path / "a.parquet", {"video": cells}, {"video": MEDIA})
    how = {"clip_seconds": 2.0, "loading": loading(context_length=512)}
    rows = every(parquet(path, "video", "audio", **how))
    assert rows and not any(isinstance(row, Skipped) for row in rows)
