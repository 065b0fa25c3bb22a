"""Laws of the labels: the truth of the world at the moment, absent where nothing holds."""

import math

import pytest
import torch

from mmpredict.probes.targets import NAMES, TARGETS, read_table, targets_named
from mmpredict.schema import UserError
from mmpredict.world import COLOURS, FAMILIES, SHAPES, Condition, draw_scene

MOMENTS = (5, 9, 13)


@pytest.fixture(scope="module")
def truths():
    condition = Condition(speech="none")
    return [
        draw_scene(n, split="train", seed=5, condition=condition).record(32, sound=False).truth
        for n in range(3 * len(FAMILIES))
    ]


@pytest.fixture(scope="module")
def table(truths):
    return read_table(truths, MOMENTS)


def rows_of_objects(truths, table):
    """Each row about an object, with the truth, the frame and the object's number."""
    for row in (table.name_R >= 0).nonzero()[:, 0].tolist():
        truth = truths[int(table.scene_R[row])]
        frame = MOMENTS[int(table.moment_R[row]) % len(MOMENTS)]
        yield row, truth, frame, truth.names.index(NAMES[int(table.name_R[row])])


def test_rows_say_where_the_named_object_is(truths, table):
    count = 0
    for row, truth, frame, n in rows_of_objects(truths, table):
        labels = torch.cat([table.labels[name][row] for name in "xyz"])
        assert torch.equal(labels, truth.position_TN3[frame, n])
        velocity = truth.velocity_TN3[frame, n, :2]
        assert table.labels["speed"][row] == pytest.approx(float(velocity.norm()), abs=1e-5)
        count += 1
    assert count > 60


def test_a_direction_has_unit_length_and_is_absent_for_what_stands_still(truths, table):
    heading, speed = table.labels["heading"], table.labels["speed"][:, 0]
    moves = speed > 0.3
    assert torch.allclose(heading[moves].norm(dim=1), torch.ones(int(moves.sum())), atol=1e-5)
    assert heading[~moves].isnan().all()
    assert 10 < int(moves.sum()) < len(table)


def test_time_to_contact_ends_at_a_contact_of_that_object(truths, table):
    count = 0
    for row, truth, frame, n in rows_of_objects(truths, table):
        ttc = float(table.labels["ttc"][row])
        if math.isnan(ttc):
            continue
        now = float(truth.times_s[frame])
        contacts = [e.time_s for e in truth.events if n in (e.a, e.b) and e.impulse > 0]
        assert ttc > 0 and now + ttc == pytest.approx(min(t for t in contacts if t > now), abs=1e-5)
        count += 1
    assert count > 10


def test_hidden_positions_are_those_of_what_cannot_be_seen_but_was(truths, table):
    hidden = ~table.labels["hidden_position"].isnan().any(1)
    assert torch.equal(hidden, table.labels["visible"] == 0)
    for row, truth, frame, n in rows_of_objects(truths, table):
        assert truth.visible_TN[: frame + 1, n].max() > 0.2  # unseen objects are not asked for
        if hidden[row]:
            assert truth.visible_TN[frame, n] <= 0.02


def test_scene_rows_name_nobody_and_heard_contacts_have_their_direction(truths, table):
    azimuth = table.labels["azimuth"][:, 0]
    for row in (~azimuth.isnan()).nonzero()[:, 0].tolist():
        truth = truths[int(table.scene_R[row])]
        time_s = float(truth.times_s[MOMENTS[int(table.moment_R[row]) % 3]])
        heard = [e for e in truth.events if e.impulse > 0 and 0 <= time_s - e.time_s < 0.25]
        x, _, z = heard[-1].position
        assert azimuth[row] == pytest.approx(math.degrees(math.atan2(x, z)), abs=1e-3)
        assert table.name_R[row] == -1
    assert int((~azimuth.isnan()).sum()) > 5


def test_types_come_back_in_other_scenes(table):
    """What makes the control task learnable."""
    named = table.name_R >= 0
    scenes_of = {}
    for kind, scene in zip(
        table.type_R[named].tolist(), table.scene_R[named].tolist(), strict=True
    ):
        scenes_of.setdefault(kind, set()).add(scene)
    assert int(table.type_R.max()) < len(COLOURS) * len(SHAPES) * 16
    assert sum(len(s) > 1 for s in scenes_of.values()) > 5


def test_the_state_holds_every_label(table):
    for target in TARGETS:
        if target.kind == "value":
            values = table.labels[target.name].nan_to_num(0.0)
            for column in values.unbind(1):
                assert (table.state_RF == column[:, None]).all(0).any()


def test_an_unknown_target_is_named():
    with pytest.raises(UserError, match="heigth.*speed"):
        targets_named(["x", "heigth"])
