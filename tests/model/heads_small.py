"""Small heads of every kind, for their tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from mmpredict.model import HeadConfig
from mmpredict.model.fsq import CHECKPOINT_ENTRY, STATE_PREFIX, BlockTokenizer, FsqConfig
from mmpredict.model.heads import values_head
from mmpredict.schema import StreamSpec
from tests.builders import VIDEO, generator

FRAME = StreamSpec(modality=VIDEO, name="video", width=4, rows=2, cols=3)
CHUNK = StreamSpec(modality=0, name="audio", width=4)
NUMBER = StreamSpec(modality=0, name="audio", width=1)
KINDS = ("flow", "regression", "gmm", "fsq")
Z = 16
CODES = FsqConfig(levels=(4, 3), codes_per_position=2, dim=16, depth=1)


def new_head(spec: StreamSpec, kind: str = "flow", **config: object) -> nn.Module:
    """The same on every call; what begins at 0 is woken, so that every path carries signal."""
    sizes: dict[str, object] = {} if kind == "regression" else {"dim": 32, "depth": 1}
    if kind == "fsq":
        sizes["codes"] = CODES
    with torch.random.fork_rng():
        torch.manual_seed(1)
        head = values_head(spec, Z, HeadConfig(kind=kind, **(sizes | config)))
    g = generator(8)
    with torch.no_grad():
        for parameter in head.parameters():
            if not parameter.any():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=g))
    return head


def inputs(spec: StreamSpec, blocks: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """z, the previous block, and the block."""
    g = generator(0)
    P, D = spec.positions_per_block, spec.width
    z = torch.randn(blocks, P, Z, generator=g)
    previous, targets = torch.randn(2, blocks, P, D, generator=g)
    return z, previous, targets


def write_tokenizers(path: Path, specs: Iterable[StreamSpec]) -> dict[str, BlockTokenizer]:
    """Tokenizers as if trained, and their checkpoint as training.FsqTokenizers writes it."""
    made = {spec.name: BlockTokenizer(spec, CODES) for spec in specs}
    state = {}
    for name, tokenizer in made.items():
        tokenizer.mean_D.fill_(100.0)
        tokenizer.std_D.fill_(50.0)
        state |= {f"{STATE_PREFIX}{name}.{k}": v for k, v in tokenizer.state_dict().items()}
    streams = {name: asdict(tokenizer.config) for name, tokenizer in made.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, CHECKPOINT_ENTRY: {"format": 1, "streams": streams}}, path)
    return made
