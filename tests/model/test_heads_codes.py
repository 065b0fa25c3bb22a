"""Laws of the code head and of the tokenizer file it stands on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmpredict.model import HeadConfig
from mmpredict.model.fsq import CHECKPOINT_ENTRY
from mmpredict.model.heads import values_head
from mmpredict.schema import StreamSpec
from tests.builders import generator
from tests.model.heads_small import CODES, FRAME, NUMBER, Z, inputs, new_head, write_tokenizers


def codes_of_all(head: torch.nn.Module, targets: torch.Tensor) -> torch.Tensor:
    return head.tokenizer.encode(targets)


def test_a_code_sees_the_codes_before_it_only():
    """Change one code: what is said of it and of all before stays, of every later one changes."""
    head = new_head(FRAME, "fsq").eval()
    z, previous, targets = inputs(FRAME, blocks=2)
    codes = codes_of_all(head, targets)
    with torch.no_grad():
        condition = head.condition(z, previous, head.mean(z, previous))

        def nats_if(codes: torch.Tensor) -> torch.Tensor:
            """Of the same codes each time, after the given ones."""
            said = head.code_nats(condition, codes)
            return said.flatten(1)

        before = nats_if(codes)
        for place in range(codes[0].numel()):
            other = codes.flatten(1).clone()
            other[:, place] = (other[:, place] + 1) % head.num_codes
            after = nats_if(other.view_as(codes))
            assert torch.equal(after[:, :place], before[:, :place])
            moved = (after[:, place + 1 :] - before[:, place + 1 :]).abs()
            assert bool((moved > 0).all())


def test_chances_of_all_possible_blocks_add_up_to_one():
    head = new_head(NUMBER, "fsq").eval()
    z, previous, _ = inputs(NUMBER, blocks=1)
    V = head.num_codes
    every = torch.cartesian_prod(torch.arange(V), torch.arange(V))[:, None]
    with torch.no_grad():
        condition = head.condition(z, previous, head.mean(z, previous))
        nats = head.code_nats(condition.expand(len(every), -1, -1), every).sum((1, 2))
    assert float((-nats).exp().sum()) == pytest.approx(1, abs=1e-4)


def test_drawing_one_after_the_other_is_what_teacher_forcing_says():
    """A cold sample's codes are each the likeliest, given those before it."""
    head = new_head(FRAME, "fsq").eval()
    z, previous, _ = inputs(FRAME)
    drawn = head.sample(z, previous, temperature=0)[0]
    with torch.no_grad():
        condition = head.condition(z, previous, head.mean(z, previous))
        codes = torch.zeros(len(z), 6, 2, dtype=torch.int64)
        for p in range(6):
            for g in range(2):
                tried = []
                for code in range(head.num_codes):
                    codes[:, p, g] = code
                    tried.append(head.code_nats(condition, codes)[:, p, g])
                codes[:, p, g] = torch.stack(tried).argmin(0)
        torch.testing.assert_close(head.tokenizer.decode(codes), drawn)


def test_samples_follow_the_chances():
    head = new_head(NUMBER, "fsq").eval()
    z, previous, _ = inputs(NUMBER, blocks=1)
    V = head.num_codes
    every = torch.cartesian_prod(torch.arange(V), torch.arange(V))[:, None]
    with torch.no_grad():
        condition = head.condition(z, previous, head.mean(z, previous))
        nats = head.code_nats(condition.expand(len(every), -1, -1), every).sum((1, 2))
        values = head.tokenizer.decode(every).flatten()
    expected = float(((-nats).exp() * values).sum())
    spread = float(((-nats).exp() * (values - expected) ** 2).sum()) ** 0.5
    x = head.sample(z, previous, draws=4000, generator=generator(0))
    assert abs(float(x.mean()) - expected) < 4 * spread / 4000**0.5


def test_the_head_learns_codes_and_leaves_the_tokenizer_alone():
    """Two blocks that come by turns are told apart by z; their tokenizer stays as it was."""
    head = new_head(FRAME, "fsq")
    before = {k: v.clone() for k, v in head.tokenizer.state_dict().items()}
    _, _, kinds = inputs(FRAME, blocks=2)
    z = torch.stack([torch.zeros(6, Z), torch.ones(6, Z)])
    previous = torch.zeros(2, 6, 4)
    optimizer = torch.optim.Adam([p for p in head.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(60):
        loss = head(z, previous, kinds).nats_MP.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 < math.log(12)
    drawn = head.sample(z, previous, generator=generator(0))[0]
    torch.testing.assert_close(drawn, head.tokenizer(kinds)[0])
    assert all(torch.equal(v, before[k]) for k, v in head.tokenizer.state_dict().items())
    assert not any(p.requires_grad for p in head.tokenizer.parameters())


def test_nats_are_codes_plus_what_they_lose():
    head = new_head(FRAME, "fsq").eval()
    z, previous, targets = inputs(FRAME)
    head.tokenizer.error.value_D.copy_(torch.tensor([0.1, 0.5, 1.0, 2.0]))
    with torch.no_grad():
        condition = head.condition(z, previous, head.mean(z, previous))
        of_codes = head.code_nats(condition, codes_of_all(head, targets)).sum((1, 2))
        again = head.tokenizer(targets)[0]
    x = targets + 0.02 * torch.randn(6, 4, generator=generator(3))
    deviation = (head.tokenizer.error.value_D + 0.02**2).sqrt()
    lost = -torch.distributions.Normal(again, deviation).log_prob(x).sum((1, 2))
    found = head.nats(z, previous, targets, generator(3))
    torch.testing.assert_close(found, of_codes + lost)


def test_a_head_takes_its_tokenizer_from_a_file_and_needs_it_no_more(tmp_path: Path):
    tokenizer = write_tokenizers(tmp_path / "t.ckpt", [FRAME])["video"]
    config = HeadConfig(kind="fsq", dim=32, depth=1, tokenizer=str(tmp_path / "t.ckpt"))
    head = values_head(FRAME, Z, config).eval()
    head.check_statistics(torch.full((4,), 100.0), torch.full((4,), 50.0))
    _, _, targets = inputs(FRAME)
    assert torch.equal(head.tokenizer.encode(targets), tokenizer.encode(targets))
    assert head.config.tokenizer == "" and head.config.codes == tokenizer.config
    (tmp_path / "t.ckpt").unlink()
    again = values_head(FRAME, Z, head.config).eval()
    again.load_state_dict(head.state_dict())
    z, previous, _ = inputs(FRAME)
    one, two = (h.sample(z, previous, generator=generator(0)) for h in (head, again))
    assert torch.equal(one, two)


def test_tokenizers_that_do_not_fit_are_refused(tmp_path: Path):
    path = tmp_path / "t.ckpt"
    config = HeadConfig(kind="fsq", tokenizer=str(path))

    def build(spec: StreamSpec) -> torch.nn.Module:
        return values_head(spec, Z, config)

    with pytest.raises(ValueError, match="does not exist; train one"):
        build(FRAME)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="cannot be read"):
        build(FRAME)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match="holds no tokenizers"):
        build(FRAME)
    write_tokenizers(path, [FRAME])
    with pytest.raises(ValueError, match="no tokenizer of audio; it has those of video"):
        build(NUMBER)
    with pytest.raises(ValueError, match="2 x 3 positions of 4 values; this run has 2 x 3 of 5"):
        build(replace(FRAME, width=5))
    with pytest.raises(ValueError, match="this run has 3 x 2 of 4"):
        build(replace(FRAME, rows=3, cols=2))
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["state_dict"]["tokenizers.video.place_in"]
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="does not fit this version .*place_in"):
        build(FRAME)
    entry = {"format": 99, "streams": {}}
    torch.save({"state_dict": {}, CHECKPOINT_ENTRY: entry}, path)
    with pytest.raises(ValueError, match="format 99"):
        build(FRAME)


def test_tokenizers_of_other_units_or_without_weights_are_refused(tmp_path: Path):
    path = tmp_path / "t.ckpt"
    write_tokenizers(path, [FRAME])
    head = values_head(FRAME, Z, HeadConfig(kind="fsq", tokenizer=str(path)))
    mean, std = torch.full((4,), 100.0), torch.full((4,), 50.0)
    head.check_statistics(mean + 1, std * 1.02)  # measured on other samples of the same data
    with pytest.raises(ValueError, match="means differ by up to 0.2 deviations"):
        head.check_statistics(mean + 10, std)
    with pytest.raises(ValueError, match="factor of up to 1.50"):
        head.check_statistics(mean, std * 1.5)
    by_hand = values_head(FRAME, Z, HeadConfig(kind="fsq", codes=CODES))
    with pytest.raises(ValueError, match="no trained weights"):
        by_hand.check_statistics(mean, std)
