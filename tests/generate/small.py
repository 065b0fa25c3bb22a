"""A small untrained model of any streams, and prompts with any of them."""

import torch

from mmpredict.model import HeadConfig, Predictor, PredictorConfig
from mmpredict.schema import Clip, Series, TextPiece
from mmpredict.tokens import Codecs, MelChunks, Patches, TextTokens, Vectors

SERIES = {"state": Vectors(2, 8, modality=3), "action": Vectors(3, 16, modality=4)}


def make_codecs(*names: str) -> Codecs:
    """8 frames of 16x16 (4 patches) and 25 chunks of stereo sound a second, bytes, 8 states and 16
    actions a second."""
    kinds = {
        "audio": MelChunks(sample_rate=8000, num_mels=16),
        "video": Patches(size=16, patch=8, fps=8.0),
        "text": TextTokens(),
    }
    series = {name: SERIES[name] for name in names if name in SERIES}
    return Codecs(**{name: kinds[name] for name in names if name in kinds}, series=series)


def make_model(
    *names: str, kind: str = "flow", drop: dict[str, float] | None = None, **settings
) -> tuple[Predictor, Codecs]:
    """An untrained predictor in which nothing is zero.

    Args:
        kind: of the heads.
        drop: streams whose head can be guided, and `drop_condition` of each.
        settings: of the PredictorConfig.
    """
    codecs = make_codecs(*names)
    size = {} if kind == "regression" else {"dim": 32, "depth": 1}
    heads = {name: HeadConfig(kind=kind, **size) for name in names if name != "text"}
    for name, share in (drop or {}).items():
        heads[name] = HeadConfig(kind=kind, drop_condition=share, **size)
    config = PredictorConfig(**{"dim": 32, "depth": 1, "num_heads": 2, "heads": heads} | settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Predictor(codecs.layout, config)
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.1)
            for name in heads:
                mean, std = {"video": (120.0, 50.0), "audio": (-10.0, 3.0)}.get(name, (1.0, 7.0))
                model.embed.standardise[name].mean.fill_(mean)
                model.embed.standardise[name].std.fill_(std)
    return model.eval(), codecs


def make_prompt(*names: str, seconds: float = 1.0) -> Clip:
    """Noise and a caption in the form that `make_codecs` takes; the caption ends at 0.6 s."""
    generator = torch.Generator().manual_seed(1)
    clip: dict = {}
    if "video" in names:
        count = round(8 * seconds)
        shape = (count, 3, 16, 16)
        clip["frames_TCHW"] = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        clip["times_s"] = torch.arange(count).double() / 8
    if "audio" in names:
        shape = (2, round(8000 * seconds))
        clip["waveform_CS"] = 0.1 * torch.randn(shape, generator=generator)
        clip["sample_rate"] = 8000
    if "text" in names:
        timed = len(names) > 1
        clip["texts"] = (TextPiece("a ball", 0.1, 0.6) if timed else TextPiece("a ball"),)
    series = {}
    for name in (name for name in names if name in SERIES):
        width, hz = SERIES[name].width, SERIES[name].hz
        times_s = torch.arange(round(hz * seconds)).double() / hz
        series[name] = Series(torch.randn(len(times_s), width, generator=generator), times_s)
    return Clip(**clip, series=series)
