"""The gate's reader is told who is meant, and can count and measure what it is shown."""

from __future__ import annotations

import torch

from mmpredict.probes.audit_gate import GATE, Gate, _learnt
from mmpredict.probes.audit_reader import Row, as_row, frame_numbers, frame_of
from mmpredict.probes.audit_views import View

_THINGS = ("red ball", "red box", "blue ball", "green cup", "blue box")
_WHERE = 2  # columns of a token that say where it is


def _view(names: tuple[str, ...], places: torch.Tensor) -> View:
    return View(torch.cat([places, torch.randn(len(names), 3)], 1), names, _WHERE)


def test_what_is_named_is_no_part_of_the_frame() -> None:
    text = "is the red ball left or right of the blue box?"
    assert frame_of(text) == "is # left or right of #?"
    assert frame_of("how many balls are there?") == "how many balls are there?"
    assert (
        len(frame_numbers([text, "is the green cup left or right of the red ball?", "left"])) == 2
    )


def test_marks_say_who_is_meant_in_the_order_of_the_question() -> None:
    view = _view(_THINGS, torch.zeros(5, 2))
    question, choices = "is the blue ball nearer the red box?", ("the red box", "the green cup")
    row = as_row(question, choices, 1, view=view, frames={"#": 7})
    assert row.marks_EM[:, :3].T.tolist() == [[0, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0] * 5]
    assert not row.marks_EM[:, 3].any()
    assert row.marks_EM[:, 4:6].T.tolist() == [[0, 1, 0, 0, 0], [0, 0, 0, 1, 0]]
    assert row.frames_Q.tolist() == [7, 7] and row.frame == 1  # a frame never seen
    alike = as_row("how many balls are there?", ("0", "1"), 0, view=view, frames={})
    assert alike.marks_EM[:, 3].tolist() == [1, 0, 1, 0, 0]
    assert not as_row("", ("possible", "impossible"), 0, view=view, frames={}).marks_EM.any()


def _counted(count: int) -> list[Row]:
    """How many balls there are; what else is there varies as well."""
    choices, frames = ("0", "1", "2", "3"), {str(k): 2 + k for k in range(4)}
    rows = []
    for _ in range(count):
        kinds = torch.randint(2, (3,)).tolist()
        names = tuple(
            f"{c} {('box', 'ball')[i]}"
            for c, i in zip(("red", "blue", "green"), kinds, strict=True)
        )
        view = _view(names, torch.randn(3, 2))
        order = torch.randperm(4).tolist()
        shown = tuple(choices[i] for i in order)
        answer = shown.index(str(sum(kinds)))
        rows.append(as_row("how many balls?", shown, answer, view=view, frames=frames))
    return rows


def _apart(count: int) -> list[Row]:
    """How far two things are apart, in any direction."""
    frames = {str(k): 2 + k for k in range(1, 4)}
    rows = []
    for k in range(count):
        places = torch.randn(5, 2)
        turn, steps = torch.rand(1) * 2 * torch.pi, 1 + k % 3
        places[3] = places[0] + steps * torch.cat([turn.cos(), turn.sin()])
        text = "from the red ball to the green cup?"
        view = _view(_THINGS, places)
        rows.append(as_row(text, ("1", "2", "3"), steps - 1, view=view, frames=frames))
    return rows


def _share(learn: list[Row], judge: list[Row], steps: int) -> float:
    model = _learnt(learn, 8, Gate(steps=steps, dim=32), 0)
    said = model(judge).argmax(1)
    return float((said == torch.tensor([row.answer for row in judge])).float().mean())


def test_it_counts() -> None:
    """Attention averages: what answers is the sum of what is marked."""
    torch.manual_seed(0)
    assert _share(_counted(256), _counted(100), 150) > GATE


def test_it_measures() -> None:
    """A distance in any direction: squares of differences."""
    torch.manual_seed(0)
    assert _share(_apart(600), _apart(100), 350) > GATE
