"""LeRobotDataset v3: episodes cut out of long films to the frame, vectors beside them, and words
for whatever does not fit together."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest
import torch

pytest.importorskip("pyarrow")

import pyarrow as pa
import pyarrow.parquet as pq

from datamodules import LeRobot
from datamodules.feed.documents import Skipped
from datamodules.feed.loading import Loading
from datamodules.files.lerobot_folder import LeRobotFolder
from mmpredict.schema import Clip, Stop
from mmpredict.sequence import separate
from mmpredict.tokens import Patches, TextTokens
from tests.datamodules.lerobot_files import (
    CAMERAS,
    FPS,
    SIZE,
    TASKS,
    Dataset,
    read_counter,
)

SPLITS = ("train", "val", "test")
SEEN = Patches(size=SIZE, patch=8, fps=FPS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Dataset().write(tmp_path_factory.mktemp("robot") / "cubes")


def module(root: Path, **knobs: Any) -> LeRobot:
    loading = Loading(context_length=600, rows=2, workers=0)
    made = LeRobot(str(root), **({"video": SEEN, "loading": loading} | knobs))
    made.setup()
    return made


def clips(made: LeRobot) -> dict[str, Clip | Skipped]:
    """All windows of all splits by name."""
    found = {}
    for split in SPLITS:
        documents = made.documents(split)
        found |= {documents.name(n): documents.clip(0, n) for n in range(len(documents))}
    return found


def shown(made: LeRobot) -> list[tuple[int, int]]:
    return sorted(
        place for clip in clips(made).values() for place in read_counter(clip.frames_TCHW)
    )


def everything(lengths: tuple[int, ...] = Dataset.__dataclass_fields__["lengths"].default) -> list:
    return [(episode, frame) for episode, n in enumerate(lengths) for frame in range(n)]


@pytest.mark.parametrize("clip_seconds", [0.7, 1.0, 3.0])
def test_every_frame_of_every_episode_is_shown_once_beside_its_vectors(root, clip_seconds: float):
    made = module(root, clip_seconds=clip_seconds)
    places = []
    for name, clip in clips(made).items():
        seen = read_counter(clip.frames_TCHW)
        assert clip.series["action"].values_TD.tolist() == [[e, t, -t] for e, t in seen], name
        assert clip.series["state"].values_TD.tolist() == [[1000 * e + t, 0.5] for e, t in seen]
        assert torch.equal(clip.times_s, torch.arange(len(seen)).double() / FPS)
        for series in clip.series.values():
            assert torch.equal(series.times_s, clip.times_s)
        assert [piece.text for piece in clip.texts] == [TASKS[seen[0][0] % 2]]
        assert clip.texts[0].start_s is None
        begin = f"episode {seen[0][0]} {seen[0][1] / FPS:g}-"
        assert begin in name and clip.name.startswith(f"cubes {begin}")
        places += seen
    # Remainders below 0.25 s are left out: at 0.7 s two frames of episode 0 and 1, ...
    window = round(clip_seconds * FPS)
    left_out = {
        (episode, frame)
        for episode, n in enumerate(Dataset().lengths)
        for frame in range(n // window * window, n)
        if n % window < 0.25 * FPS and n >= window
    }
    assert sorted(places) == sorted(set(everything()) - left_out)
    assert (clip_seconds == 0.7) == bool(left_out)


@pytest.mark.parametrize("fps", [5.0, 4.0, 3.3, 20.0])
def test_at_another_rate_the_last_recorded_frame_stands_and_all_vectors(root, fps: float):
    made = module(root, video=replace(SEEN, fps=fps), clip_seconds=1.0)
    for clip in clips(made).values():
        seen, actions = read_counter(clip.frames_TCHW), clip.series["action"].values_TD
        episode, first = int(actions[0, 0]), int(actions[0, 1])
        times = [k / fps for k in range(math.ceil(len(actions) / FPS * fps - 1e-6))]
        assert clip.times_s.tolist() == pytest.approx(times)
        assert seen == [(episode, first + int(t * FPS + 1e-6)) for t in times]
        assert len(actions) == len(clip.series["state"].times_s)


def test_starts_that_are_a_fraction_of_a_frame_off_do_no_harm(tmp_path):
    """LeRobot adds up floats and rounded durations: starts drift from the stamps in the film."""
    for n, data in enumerate((Dataset(drift_s=0.02), Dataset(drift_s=-0.02), Dataset(gap_s=0.013))):
        made = module(data.write(tmp_path / str(n)), clip_seconds=1.0)
        assert shown(made) == everything() and not made.skip_log.reasons


@pytest.mark.parametrize(
    ("film_fps", "words"),
    [
        (20, "has 20 frames a second, the dataset 10"),
        (5, "about 3[345] frames, its episodes have 70"),
    ],
)
def test_a_film_at_another_rate_than_the_dataset_is_refused(tmp_path, film_fps: int, words: str):
    root = Dataset(film_fps=film_fps).write(tmp_path / "a")
    with pytest.raises(Stop, match=words):
        module(root, clip_seconds=1.0)


def test_episodes_may_stand_apart_in_the_film(tmp_path):
    made = module(Dataset(gap_s=3.21).write(tmp_path / "a"), clip_seconds=3.0)
    assert shown(made) == everything()


def test_av1_is_read_to_the_frame_too(tmp_path):
    """What LeRobot writes unless told otherwise."""
    if "libsvtav1" not in av.codecs_available:
        pytest.skip("no encoder for AV1")
    lengths = (5, 26, 34)
    made = module(
        Dataset(lengths, (3,), cameras=CAMERAS[:1], codec="libsvtav1").write(tmp_path / "a"),
        clip_seconds=1.2,
    )
    assert shown(made) == sorted(set(everything(lengths)) - {(1, 24), (1, 25)})


def test_a_run_is_read_at_one_go_and_says_the_same(root):
    made = module(root, clip_seconds=0.7)
    for split in SPLITS:
        documents = made.documents(split)
        runs = documents.runs()
        assert [n for run in runs for n in run] == list(range(len(documents)))
        for run in runs:
            assert len({documents.find(n)[0] for n in run}) == 1
            order = [*reversed(run), run[0]]
            for n, row in zip(order, documents.read(0, order), strict=True):
                alone = documents.document(3, n)
                assert alone.contents.keys() == row.contents.keys()
                assert all(torch.equal(alone.contents[m], row.contents[m]) for m in row.contents)
                assert torch.equal(alone.positions, row.positions)


def test_a_document_stands_in_the_order_task_frame_state_action(root):
    made = module(root, clip_seconds=0.4)
    streams = [(s.modality, s.name, s.width) for s in made.layout.streams]
    assert streams == [(1, "video", 192), (2, "text", 0), (3, "state", 2), (4, "action", 3)]
    row = made.documents("train").document(0, 0)
    blocks = row.modality[0][row.block_id[0].diff(prepend=torch.tensor([-1])) > 0].tolist()
    task = len(blocks) - 12
    assert blocks == [2] * task + [1, 3, 4] * 4 and task > 5
    streams = {t.modality: t for t in separate(row, made.layout)}
    assert streams[4].contents[:, 0, 1].tolist() == [0, 1, 2, 3]


def test_fewer_vectors_may_be_seen_than_were_recorded(root):
    made = module(root, clip_seconds=1.0, hz=5.0)
    tokens = {t.modality: t for t in made.codecs.encode(made.documents("train").clip(0, 0))}
    assert tokens[4].contents[:, 0, 1].tolist() == [0, 2, 4, 6, 8]
    assert tokens[1].contents.shape[0] == 10
    with pytest.raises(ValueError, match="hz=0"):
        module(root, hz=0)


def test_camera_series_and_streams_are_the_users_choice(root, capsys):
    made = module(root, camera=CAMERAS[1], series=["action"], text=None, clip_seconds=3.0)
    clip = made.documents("train").clip(0, 0)
    negative = read_counter(255 - clip.frames_TCHW)
    assert [frame for _, frame in negative] == list(range(len(negative)))
    assert list(clip.series) == ["action"] and clip.texts == ()
    assert "note" not in capsys.readouterr().out
    blind = module(root, video=None, clip_seconds=3.0)
    clip = blind.documents("train").clip(0, 0)
    assert clip.frames_TCHW is None and [s.name for s in blind.layout.streams] == [
        "text",
        "state",
        "action",
    ]
    seeing = module(root, series=[], clip_seconds=3.0)
    assert [s.name for s in seeing.layout.streams] == ["video", "text"]
    said = capsys.readouterr().out
    assert f"note: {CAMERAS[0]} is seen; there are also {CAMERAS[1]} (data.camera)" in said


def test_a_feature_of_one_value_is_a_vector_of_one(root):
    made = module(root, series=["next.done", "action"], clip_seconds=3.0)
    assert [(s.name, s.modality) for s in made.layout.streams[2:]] == [
        ("next_done", 3),
        ("action", 4),
    ]
    done = made.documents("train").clip(0, 0).series["next_done"].values_TD
    assert done[:, 0].tolist() == [0.0] * (len(done) - 1) + [1.0]


def test_episodes_are_held_out_whole_and_stay_so_as_more_are_recorded(tmp_path):
    few = tuple([4] * 40)
    small = Dataset(few, (40,), cameras=()).write(tmp_path / "small")
    large = Dataset((*few, *[4] * 10), (50,), cameras=()).write(tmp_path / "large")
    before, after = (module(r, video=None, clip_seconds=0.2) for r in (small, large))
    split = {
        made: {s: {e.index for e in made.documents(s).episodes} for s in SPLITS}
        for made in (before, after)
    }
    assert set().union(*split[before].values()) == set(range(40))
    assert sum(map(len, split[before].values())) == 40 and all(split[before].values())
    assert split[before]["train"] <= split[after]["train"]


def test_the_vocabulary_is_trained_on_the_tasks(root):
    made = module(root, text=TextTokens(kind="bpe", vocab_size=262))
    assert set(made.corpus()) == set(TASKS)
    assert made.codecs.text.is_fitted


def test_statistics_and_batches_have_the_vectors(root):
    made = module(root, clip_seconds=1.0)
    statistics = made.statistics()
    episodes = [e.index for e in made.documents("train").episodes]
    assert float(statistics.mean[4][0]) == pytest.approx(sum(episodes) / len(episodes), abs=0.7)
    assert float(statistics.std[3][1]) == 0.0 and float(statistics.mean[3][1]) == 0.5
    batch = next(iter(made.train_dataloader()))
    assert batch.contents[4].shape[1] == 3 and batch.contents[4].dtype == torch.float32


def test_the_fingerprint_names_the_file_that_changed(tmp_path):
    root = Dataset().write(tmp_path / "a")
    before = module(root).fingerprint()
    assert sorted(before) == sorted(
        [f"data/chunk-000/file-00{n}.parquet" for n in (0, 1)]
        + [f"videos/{CAMERAS[0]}/chunk-000/file-00{n}.mp4" for n in (0, 1)]
        + [f"meta/episodes/chunk-000/file-00{n}.parquet" for n in (0, 1)]
        + ["meta/info.json", "meta/tasks.parquet"]
    )
    assert module(root).fingerprint() == before
    film = root / f"videos/{CAMERAS[0]}/chunk-000/file-001.mp4"
    film.write_bytes(film.read_bytes()[:-1] + b"x")
    after = module(root).fingerprint()
    assert [n for n in before if before[n] != after[n]] == [str(film.relative_to(root))]


def test_a_task_that_changes_within_a_window_is_said_when_it_does(tmp_path):
    root = Dataset().write(tmp_path / "a")
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    tasks = table.column("task_index").to_pylist()
    tasks[4:8] = [1] * 4  # of episode 0, whose task is 0 otherwise
    column = table.column_names.index("task_index")
    pq.write_table(table.set_column(column, "task_index", pa.array(tasks)), path)
    clip = next(c for n, c in clips(module(root)).items() if "episode 0 0-" in n)
    said = [(piece.text, piece.start_s, piece.end_s) for piece in clip.texts]
    assert said == [(TASKS[0], None, None), (TASKS[1], 0.4, 0.4), (TASKS[0], 0.8, 0.8)]


def rewritten(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def column_set(table: pa.Table, name: str, row: int, value: object) -> pa.Table:
    values = table.column(name).to_pylist()
    values[row] = value
    at = table.column_names.index(name)
    return table.set_column(at, name, pa.array(values, table.schema.field(name).type))


FILM = f"videos/{CAMERAS[0]}"
ENTRIES, LINES = "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet"


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (ENTRIES, lambda t: column_set(t, "length", 1, 29), "29 frames .* 30.0 frames"),
        (ENTRIES, lambda t: column_set(t, f"{FILM}/from_timestamp", 1, None), "has gaps"),
        (
            ENTRIES,
            lambda t: column_set(
                column_set(t, f"{FILM}/from_timestamp", 1, 2.0), f"{FILM}/to_timestamp", 1, 5.0
            ),
            "begins at 2.000 s of .* where episode 0 goes on until 2.300 s",
        ),
        (ENTRIES, lambda t: column_set(t, f"{FILM}/file_index", 1, 7), "file-007.mp4 is missing"),
        (
            ENTRIES,
            lambda t: column_set(
                column_set(t, f"{FILM}/from_timestamp", 1, 50.0), f"{FILM}/to_timestamp", 1, 53.0
            ),
            "ends at 53.000 s of .*, which ends at 7.000 s",
        ),
    ],
    ids=["length", "gap", "overlap", "missing", "beyond"],
)
def test_an_episode_that_does_not_fit_its_film_is_left_out_by_name(
    tmp_path, file: str, change: Callable, words: str
):
    root = Dataset().write(tmp_path / "a")
    rewritten(root / file, change)
    made = module(root, clip_seconds=1.0)
    (source,) = made.skip_log.reasons
    assert source == f"{root} episode 1"
    assert re.search(words, made.skip_log.reasons[source])
    assert {episode for episode, _ in shown(made)} == {0, 2, 3, 4}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.slice(0, 30), "has 7 frames, meta/episodes says 30"),
        (lambda t: column_set(t, "frame_index", 25, 9), "frame_index does not count"),
        (lambda t: column_set(t, "timestamp", 25, 9.0), "frame 2 has the time 9.000 s"),
        (lambda t: column_set(t, "action", 25, [1.0, math.nan, 0.0]), "action of frame 2 is not"),
        (lambda t: column_set(t, "observation.state", 25, [1.0]), "vectors of unlike lengths"),
        (lambda t: column_set(t, "task_index", 25, 5), "has task 5, which meta/tasks.parquet"),
        (lambda t: t.drop_columns(["action"]), "cannot be read"),
    ],
)
def test_an_episode_with_broken_lines_is_skipped_by_name(tmp_path, change: Callable, words: str):
    root = Dataset().write(tmp_path / "a")
    rewritten(root / LINES, change)
    made = module(root, clip_seconds=1.0)
    results = clips(made)
    broken = {n: c for n, c in results.items() if isinstance(c, Skipped)}
    assert any("episode 1 " in name for name in broken) and len(broken) < len(results)
    for name, skipped in broken.items():
        if "episode 1 " in name:
            assert skipped.source == f"{root} episode 1"
            assert re.search(words, skipped.reason), skipped.reason
            assert "file-000.parquet episode 1" in skipped.reason


def test_a_film_without_its_end_is_left_out_by_name(tmp_path):
    root = Dataset(files=(1, 4)).write(tmp_path / "a")
    film = root / FILM / "chunk-000/file-000.mp4"
    film.write_bytes(film.read_bytes()[:1000])
    made = module(root, clip_seconds=1.0)
    ((source, reason),) = made.skip_log.reasons.items()
    assert source == f"{root} episode 0" and "file-000.mp4: cannot be read" in reason
    assert shown(made) == [place for place in everything() if place[0] != 0]


def test_damage_in_a_film_takes_its_windows_alone(tmp_path):
    root = Dataset().write(tmp_path / "a")
    film = root / FILM / "chunk-000/file-000.mp4"
    with av.open(str(film)) as container:
        packets = [p for p in container.demux(video=0) if p.pos is not None]
        place = next(p for p in packets if 3.45 < float(p.pts * p.time_base) < 3.55)
    content = bytearray(film.read_bytes())
    content[place.pos : place.pos + place.size] = b"\xff" * place.size
    film.write_bytes(bytes(content))
    results = clips(module(root, clip_seconds=1.0))
    broken = {n: c for n, c in results.items() if isinstance(c, Skipped)}
    assert any("episode 1 1-2 s" in name for name in broken) and len(broken) <= 2
    for skipped in broken.values():
        assert skipped.source == f"{root} episode 1" and not skipped.harmless
        assert "file-000.mp4" in skipped.reason


def info_with(**entries: Any) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / "meta/info.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))

    return change


def without(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (info_with(codebase_version="v2.1"), "is v2.1, this reads v3; convert .*v21_to_v30"),
        (info_with(codebase_version="v4.0"), "is v4.0, this reads v3; update mmpredict"),
        (info_with(codebase_version=None), "convert it"),
        (info_with(fps=0), "fps=0 must be"),
        (info_with(fps=25), "fps is 25, that of observation.images.a is 10"),
        (info_with(total_episodes=6), "lists 5 episodes, meta/info.json says 6"),
        (info_with(data_path="../x/{file_index}.parquet"), "data_path=.* is no path inside"),
        (info_with(video_path="/etc/{video_key}"), "video_path=.* is no path inside"),
        (info_with(data_path="{chunk_index:99999999d}"), "data_path=.* is no path inside"),
        (info_with(data_path="{chunk_index.__class__}"), "data_path=.* is no path inside"),
        (without("meta/info.json"), "has no meta/info.json; .* hf download"),
        (without("meta/tasks.parquet"), "tasks.parquet is missing"),
        (without("meta/episodes/chunk-000/file-001.parquet"), "lists 3 episodes, .* says 5"),
        (lambda root: (root / "meta/info.json").write_text("{"), "info.json is damaged"),
        (info_with(features={"action": {"dtype": "float32"}}), "info.json is damaged .*shape"),
        (info_with(features=["action"]), "info.json is damaged"),
        (lambda root: (root / "meta/tasks.parquet").write_bytes(b"PAR1"), "parquet is damaged"),
        (
            lambda root: rewritten(root / ENTRIES, lambda t: t.drop_columns(["length"])),
            "has no column length",
        ),
        (
            lambda root: (root / "meta/episodes/chunk-000/file-009.parquet").write_bytes(
                (root / ENTRIES).read_bytes()
            ),
            "lists episode 0 twice; remove the stale one of its files: .*file-009",
        ),
    ],
)
def test_a_dataset_that_contradicts_itself_is_refused(tmp_path, change: Callable, words: str):
    root = Dataset().write(tmp_path / "a")
    change(root)
    with pytest.raises(ValueError, match=words):
        module(root)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"camera": "top"}, f"camera=top is no video of .*; it has {CAMERAS[0]}, {CAMERAS[1]}"),
        ({"camera": CAMERAS[0], "video": None}, "camera=.* is given and data.video is null"),
        ({"series": ["reward"]}, "names reward, .* it has observation.state, action, next.done"),
        ({"series": [CAMERAS[0]]}, "which is no vector of numbers"),
        ({"series": [], "video": None, "text": None}, "all streams are null"),
        ({"clip_seconds": 0}, "clip_seconds=0 must be above 0"),
        ({"held_out_share": 0.5}, "held_out_share=0.5 between"),
        ({"clip_seconds": 90.0}, "context_length is 600"),
    ],
)
def test_wrong_settings_are_named(root, knobs: dict, words: str):
    with pytest.raises(ValueError, match=words):
        module(root, **knobs)


def test_too_many_missing_files_stop_the_run_with_the_list(tmp_path):
    root = Dataset().write(tmp_path / "a")
    (root / LINES).unlink()
    with pytest.raises(Stop, match=r"3 of 5 .*\n.*episode 0: data/.* is missing; fetch it"):
        module(root)


def test_two_episodes_cannot_be_split(tmp_path):
    root = Dataset((5, 6), (2,), cameras=()).write(tmp_path / "a")
    with pytest.raises(ValueError, match="has 2 usable episodes; it takes three"):
        module(root, video=None)


def test_numbers_of_files_may_be_floats(tmp_path):
    """As tables become that were joined where entries lack."""
    root = Dataset().write(tmp_path / "a")

    def as_floats(table: pa.Table) -> pa.Table:
        for name in (f"{FILM}/file_index", "data/chunk_index"):
            at = table.column_names.index(name)
            table = table.set_column(at, name, table.column(name).cast(pa.float64()))
        return table

    for path in root.glob("meta/episodes/*/*"):
        rewritten(path, as_floats)
    assert shown(module(root, clip_seconds=1.0)) == everything()


def test_depth_is_seen_only_when_asked_for(tmp_path):
    root = Dataset().write(tmp_path / "a")
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"][CAMERAS[0]]["info"] = {"is_depth_map": True}
    path.write_text(json.dumps(info))
    assert LeRobotFolder(root).cameras == [CAMERAS[1], CAMERAS[0]]
