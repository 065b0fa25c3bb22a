"""Laws of the flow head's bound on nats: exact where it is known, and above the truth elsewhere."""

from __future__ import annotations

import math

import pytest
import torch

from mmpredict.model import HeadConfig
from mmpredict.model.heads import values_head
from mmpredict.model.heads.density import DEQUANTISATION, gaussian_nats, noised_alike
from tests.builders import generator
from tests.model.heads_small import CHUNK, FRAME, Z, inputs, new_head


@pytest.mark.parametrize("spec", [FRAME, CHUNK], ids=["frame", "chunk"])
@pytest.mark.parametrize("sigma", [0.01, 0.3, 2.0])
def test_a_flow_that_has_learned_no_correction_has_its_gaussians_nats(spec, sigma: float):
    """Its denoiser is the Gaussian's own, dequantisation included: nothing is gained or lost."""
    head = values_head(spec, Z, HeadConfig(dim=32, depth=1))
    with torch.no_grad():
        head.to_log_sigma.bias.fill_(math.log(sigma))
    z, previous, _ = inputs(spec)
    targets = previous + sigma * torch.randn(previous.shape, generator=generator(2))
    x = noised_alike(targets, generator(3))
    variance = torch.tensor(sigma**2 + DEQUANTISATION**2)
    expected = gaussian_nats(x, previous, variance).sum((1, 2))
    found = head.nats(z, previous, targets, generator(3))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * x[0].numel())


def test_a_wrong_correction_costs_nats():
    """The bound holds for any denoiser: what was not learned cannot win bits, on average."""
    z, previous, _ = inputs(FRAME, blocks=200)
    targets = previous + 0.5 * torch.randn(previous.shape, generator=generator(2))
    calm = values_head(FRAME, Z, HeadConfig(dim=32, depth=1))
    wild = new_head(FRAME, "flow")
    wild.load_state_dict(calm.state_dict())
    with torch.no_grad():
        wild.to_correction.weight.normal_(std=0.1, generator=generator(4))
    costs = []
    for n in range(4):  # the same noise for both
        wild_M, calm_M = (h.nats(z, previous, targets, generator(n)) for h in (wild, calm))
        costs.append(float((wild_M - calm_M).mean()))
    assert sum(costs) / len(costs) > 0


def test_copying_exactly_earns_no_more_than_the_noise_allows():
    """All heads are scored on blocks with the same noise, so bits are bounded."""
    least = 0.5 * math.log(2 * math.pi * math.e * DEQUANTISATION**2)
    z, previous, _ = inputs(FRAME, blocks=64)
    for kind in ("flow", "regression", "gmm"):
        head = new_head(FRAME, kind).eval()
        with torch.no_grad():
            for name, parameter in head.named_parameters():
                if "to_" in name:
                    parameter.zero_()
            if kind == "flow":
                head.to_log_sigma.bias.fill_(-5.0)
            elif kind == "regression":
                head.error.value_D.zero_()
            else:
                head.to_mixture.bias[-8 * 4 :] = -5.0
        nats = head.nats(z, previous, head.mean(z, previous), generator(1)) / 24
        assert least - 0.5 < float(nats.mean()) < least + 0.5
