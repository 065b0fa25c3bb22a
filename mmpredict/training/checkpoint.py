"""What a checkpoint says of itself, and how a predictor comes back from it without the data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mmpredict.model import Predictor, PredictorConfig
from mmpredict.tokens import Codecs

FORMAT = 2  # 1: before the trunk was a module of its own
PREFIX = "predictor."  # of the predictor's tensors in a checkpoint of Pretrain


def describe(predictor: Predictor, codecs: Codecs, context_length: int) -> dict[str, Any]:
    """Plain types from which `load_predictor` builds the predictor and its encoders again."""
    return {
        "format": FORMAT,
        "predictor": asdict(predictor.config),
        "codecs": codecs.to_plain(),
        "context_length": context_length,
    }


def load_predictor(path: str | Path) -> tuple[Predictor, Codecs, dict[str, Any]]:
    """A predictor in evaluation mode, its encoders, and the checkpoint's own description.

    Only tensors and plain types are read (`weights_only=True`); URLs are refused.
    """
    if "://" in str(path):
        raise ValueError(f"checkpoint {path} is a URL; download it first and give the local file")
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"checkpoint {path} cannot be read: {str(error).splitlines()[0]}"
        ) from error
    about = checkpoint.get("mmpredict") if isinstance(checkpoint, dict) else None
    if about is None:
        raise ValueError(f"checkpoint {path} was not written by mmpredict (no 'mmpredict' entry)")
    if about["format"] > FORMAT:
        raise ValueError(
            f"checkpoint {path} has format {about['format']}, this version reads up to {FORMAT}; "
            "install a newer mmpredict"
        )
    if about["format"] < FORMAT:
        raise ValueError(
            f"checkpoint {path} has format {about['format']}, of an early version whose layers had "
            f"other names; this version reads format {FORMAT}: train anew, or use the version that "
            "wrote it"
        )
    codecs = Codecs.from_plain(about["codecs"])
    config = PredictorConfig.from_plain(about["predictor"])
    predictor = Predictor(codecs.layout, config)
    state = {  # beside it stand the weights of the losses, where they are learned
        name.removeprefix(PREFIX): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(PREFIX)
    }
    predictor.load_state_dict(state)
    return predictor.eval(), codecs, about
