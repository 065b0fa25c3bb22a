"""Documents whose frames are RGB patches, and their predictors with image encoders: 2 x 3 patches
of 4 x 4 pixels beside the sound and text of the builders."""

from __future__ import annotations

import torch

from mmpredict.model import HeadConfig, Predictor, PredictorConfig
from mmpredict.model.frame_encoder import FrameEncoderConfig
from mmpredict.model.latent import LatentConfig
from mmpredict.schema import Batch, Layout, StreamSpec, Tokens
from mmpredict.sequence import interleave
from tests.builders import AUDIO, TEXT, VIDEO, audio_tokens, generator, text_tokens
from tests.builders import LAYOUT as PLAIN_LAYOUT

FRAMES = StreamSpec(
    modality=VIDEO,
    name="video",
    width=48,
    rows=2,
    cols=3,
    period_s=0.125,
    dtype=torch.uint8,
    value_range=(0.0, 255.0),
)
LAYOUT = Layout((PLAIN_LAYOUT[AUDIO], FRAMES, PLAIN_LAYOUT[TEXT]))
VIT = FrameEncoderConfig("test_vit", size=(16, 24), args={"patch_size": 8})
CONVNET = FrameEncoderConfig("test_convnext", size=(32, 48), layer=-2)
BATCH_NORMS = FrameEncoderConfig("test_resnet", size=(32, 48), frozen=True)


def frame_tokens(blocks: int, seed: int = 0) -> Tokens:
    contents = torch.randint(256, (blocks, 6, 48), generator=generator(seed)).to(torch.uint8)
    return Tokens(VIDEO, contents, 0.125 * torch.arange(blocks).double())


def document(blocks: int = 3, seed: int = 0) -> Batch:
    """A one-document row of sound, `blocks` frames and text."""
    return interleave([audio_tokens(5), frame_tokens(blocks, seed), text_tokens(6)], LAYOUT)


def predictor(
    encoder: FrameEncoderConfig | None = VIT, latent: LatentConfig | None = None, **config: object
) -> Predictor:
    """A tiny predictor, the same on every call, whose frames go through `encoder`."""
    head = HeadConfig(kind="regression")
    sizes = {"dim": 32, "depth": 2, "num_heads": 2} | config
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = Predictor(
            LAYOUT,
            PredictorConfig(
                heads={"audio": head, "video": head},
                encoders={} if encoder is None else {"video": encoder},
                latent={} if latent is None else {"video": latent},
                **sizes,
            ),
        )
    scale = model.embed.standardise["video"]
    scale.mean.fill_(127.5)
    scale.std.fill_(74.0)
    return model
