"""What the data benchmarks train: the shipped recipes' own data and model, built from their files.

In: recipes/mixture.yaml, recipes/quickstart.yaml. Out: a datamodule that is set up; a predictor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from datamodules import Loading, Mixture, Text, World
from mmpredict.model import Predictor, PredictorConfig
from mmpredict.schema import Layout, Statistics
from mmpredict.tokens import MelChunks, Patches, TextTokens

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
_ENCODERS = {"video": Patches, "audio": MelChunks, "text": TextTokens}
_PARTS = {"datamodules.World": World, "datamodules.Text": Text}


def recipe(name: str) -> dict[str, Any]:
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))


def mixture() -> Mixture:
    """The datamodule of recipes/mixture.yaml, set up."""
    settings = recipe("mixture")["data"]["init_args"]
    parts = [
        _PARTS[part["class_path"]](**_built(part["init_args"])) for part in settings.pop("parts")
    ]
    loading = Loading(**settings.pop("loading"))
    data = Mixture(parts, **settings, loading=loading)
    data.setup()
    return data


def world(**changes: Any) -> World:
    """The datamodule of recipes/quickstart.yaml, set up."""
    settings = _built(recipe("quickstart")["data"]["init_args"])
    settings["loading"] = Loading(**settings["loading"] | changes)
    data = World(**settings)
    data.setup()
    return data


def quickstart_model(layout: Layout, statistics: Statistics) -> Predictor:
    """The predictor of recipes/quickstart.yaml over any streams, untrained."""
    torch.manual_seed(0)
    settings = recipe("quickstart")["model"]["init_args"]["predictor"]
    model = Predictor(layout, PredictorConfig(**settings))
    model.embed.set_statistics(statistics)
    return model


def _built(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _ENCODERS[name](**value) if name in _ENCODERS else value
        for name, value in settings.items()
    }
