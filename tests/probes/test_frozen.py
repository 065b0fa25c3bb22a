"""Laws of the whole: what is planted is found and nothing else is, and two runs agree."""

import json
from dataclasses import replace

import pytest
import torch

from mmpredict.probes.features import Features
from mmpredict.probes.frozen import ALL_TARGETS, run_frozen
from mmpredict.probes.frozen_answers import answer, answer_at
from mmpredict.probes.frozen_score import Source, make_task
from mmpredict.probes.frozen_sources import Sizes, baseline_sources, film, oracle_source
from mmpredict.probes.targets import TARGETS, read_table, targets_named
from mmpredict.schema import UserError
from mmpredict.world import Condition, draw_scene
from tests.generate.small import make_model

MOMENTS = (5, 9, 13)
SIZES = {"train": 40, "dev": 20, "test": 30}


@pytest.fixture(scope="module")
def tables():
    condition, found = Condition(speech="none"), {}
    for part, count in SIZES.items():
        split = "test_iid" if part == "test" else part
        scenes = [draw_scene(n, split=split, seed=9, condition=condition) for n in range(count)]
        truths = [scene.record(16, sound=False).truth for scene in scenes]
        found[part] = read_table(truths, MOMENTS)
    return found


def planted(tables, *names: str, shuffled: tuple[str, ...] = ()) -> Source:
    """Features that hold the mean x and the mean speed of the objects, as asked; `shuffled` hold
    those of another moment."""
    features = {}
    for part, table in tables.items():
        g = torch.Generator().manual_seed(len(table))
        moments = int(table.moment_R.max()) + 1
        columns = [0.1 * torch.randn(moments, 6, generator=g)]
        for name in names:
            of_moment = label_of_moments(table, name)
            if name in shuffled:
                of_moment = of_moment[torch.randperm(moments, generator=g)]
            columns.append(of_moment[:, None])
        values = torch.cat(columns, 1)[:, None]
        random = torch.randn(values.shape, generator=g)
        features[part] = Features(
            ("noise", "planted"), [random, values], {"video": slice(0, 1)}, torch.zeros(1, 3)
        )
    return Source("planted", features, tables, None)


def label_of_moments(table, name: str) -> torch.Tensor:
    """(M,) the mean of a label over the objects of each moment."""
    rows = (table.name_R >= 0).nonzero()[:, 0]
    moment_R = table.moment_R[rows]
    moments = int(table.moment_R.max()) + 1
    total = torch.zeros(moments).index_add(0, moment_R, table.labels[name][rows, 0])
    return total / torch.bincount(moment_R, minlength=moments).clamp(min=1)


def with_mean_labels(tables):
    """Tables in which every object of a moment has the mean label: decodable without a name."""
    made = {}
    for part, table in tables.items():
        labels = dict(table.labels)
        for name in ("x", "speed"):
            means = label_of_moments(table, name)[table.moment_R][:, None]
            labels[name] = torch.where(labels[name].isnan(), labels[name], means)
        made[part] = replace(table, labels=labels)
    return made


def test_a_planted_label_is_found_in_its_layer_and_shuffling_removes_what_needs_order(tables):
    tables = with_mean_labels(tables)
    tasks = [make_task(target, tables) for target in targets_named(["x", "speed"])]
    found = answer(planted(tables, "x", "speed"), tasks, width=0)
    for name in ("x", "speed"):
        assert found[name].choice.layer == 1
        assert found[name].linear.score > 0.9
    order_lost = planted(tables, "x", "speed", shuffled=("speed",))
    left = answer_at(order_lost, tasks, found, width=0)
    assert left["x"].linear.score > 0.9
    assert left["speed"].linear.score < 0.2


def test_the_truth_itself_is_decoded_to_the_ceiling(tables):
    tasks = [task for task in (make_task(t, tables) for t in TARGETS) if not isinstance(task, str)]
    assert len(tasks) >= 9
    for name, found in answer(oracle_source(tables), tasks, width=0).items():
        assert found.linear.score > 0.98, name


def test_rare_classes_are_left_out_by_name_and_few_rows_are_not_asked(tables):
    support = make_task(targets_named(["support"])[0], tables)
    assert "rare classes" in support.left_out
    counts = torch.bincount(support.truth["train"])
    assert counts.min() >= 10 and len(counts) == len(support.classes)
    few = {part: replace(t, labels={**t.labels, "x": t.labels["x"] * float("nan")})
           for part, t in tables.items()}  # fmt: skip
    assert "0 train rows" in make_task(targets_named(["x"])[0], few)


SMALL = {"train_scenes": 14, "dev_scenes": 8, "test_scenes": 8, "inits": 1}


@pytest.fixture(scope="module")
def results():
    model, codecs = make_model("audio", "video", "text", dim=64)
    return run_frozen(model, codecs, targets=("x", "azimuth", "count"), **SMALL)


def test_every_control_stands_beside_every_number(results):
    plain = results.to_plain()
    assert set(plain["targets"]) | set(plain["skipped"]) == {"x", "azimuth", "count"}
    for entry in plain["targets"].values():
        linear = entry["readouts"]["linear"]
        assert {"raw pixels", "raw sound", "untrained 0", "captions"} <= set(linear["baselines"])
        assert set(linear["temporal"]) == {"shuffled frames", "last frame"}
        assert linear["comp"] and linear["selectivity"] and linear["claim"]
        assert entry["permuted"] and entry["oracle"] > 0.95 and not entry["leak"]
        assert entry["ranks"] and entry["samples"]
        assert entry["mdl"]["model"]["bits"] > 0 and entry["mdl"]["untrained 0"]["bits"] > 0
    json.dumps(plain, allow_nan=False)


def test_an_untrained_model_encodes_nothing(results):
    for entry in results.targets.values():
        for readout in entry["readouts"].values():
            assert readout["claim"] != "encodes"


def test_the_page_has_a_row_for_every_target_and_column_for_every_control(results):
    page = results.markdown()
    head = next(line for line in page.splitlines() if line.startswith("| linear probe"))
    for word in ("raw pixels", "untrained", "captions", "control task", "permuted", "oracle"):
        assert word in head
    for name in results.targets:
        assert sum(line.startswith(f"| {name} |") for line in page.splitlines()) >= 3
    assert page.isascii()


def test_two_runs_are_equal_and_do_not_touch_the_model_or_the_global_generator():
    model, codecs = make_model("video", dim=64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    pages = [
        json.dumps(run_frozen(model, codecs, targets=("x",), **SMALL).to_plain(timing=False))
        for _ in range(2)
    ]
    assert pages[0] == pages[1]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_model_without_the_stream_is_refused_with_what_can_be_asked():
    model, codecs = make_model("audio", "text")
    with pytest.raises(UserError, match="targets x.*audio, text.*ask for azimuth"):
        run_frozen(model, codecs, targets=("x", "azimuth"))
    assert "x" in ALL_TARGETS


def test_a_text_only_model_is_fed_the_clip_if_it_can_take_it_and_else_the_captions():
    model, codecs = make_model("audio", "video", "text")
    scenes = Sizes(2, 1, 1, 1).scenes(codecs)
    filmed = film(codecs, scenes)
    for text_only, slot in ((make_model("text"), "text"), ((model, codecs), "video")):
        sources = baseline_sources(model, codecs, scenes, filmed, inits=1, text_only=text_only)
        found = {source.name: source for source in sources}
        assert list(found) == ["raw pixels", "raw sound", "untrained 0", "text-only", "captions"]
        assert slot in found["text-only"].features["test"].slots
        assert set(found["captions"].features["test"].slots) == {"text", "last"}
