"""How good a forecast is, for sampled and for single forecasts, in the same units.

Shapes: R samples, M blocks, P positions per block, D values.
"""

from __future__ import annotations

from torch import Tensor


def energy_score(samples_RMPD: Tensor, truth_MPD: Tensor) -> Tensor:
    """(M,) energy score of each block; lower is better, and the true distribution scores best.

    mean_r |x_r - y| - 1/2 mean_{r != s} |x_r - x_s| (Gneiting & Raftery 2007, unbiased form),
    where |.| is the root mean square over the block's values. For one sample it is |x - y|: a
    forecast without spread scores its plain error.
    """
    samples = samples_RMPD.flatten(2).float()
    truth = truth_MPD.flatten(1).float()
    scale = truth.shape[1] ** 0.5
    error_M = (samples - truth).norm(dim=-1).mean(dim=0) / scale
    R = len(samples)
    if R == 1:
        return error_M
    spread_M = error_M.new_zeros(len(truth))
    for r in range(R):
        for s in range(r):
            spread_M += (samples[r] - samples[s]).norm(dim=-1)
    return error_M - spread_M / (R * (R - 1)) / scale


def squared_error(forecast_MPD: Tensor, truth_MPD: Tensor) -> Tensor:
    """(M,) mean squared error of each block."""
    return (forecast_MPD.float() - truth_MPD.float()).square().flatten(1).mean(dim=1)
