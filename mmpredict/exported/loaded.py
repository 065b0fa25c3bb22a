"""What `mmpredict.load` gives: a predictor with all that is needed to ask it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mmpredict.generate import Rollout, rollout
from mmpredict.model import Predictor
from mmpredict.schema import Clip, TextPiece
from mmpredict.tokens import Codecs

DEFAULT_CONTEXT = 1024  # for models that do not say with how many positions they were trained


@dataclass(frozen=True)
class Loaded:
    """A trained predictor in evaluation mode, and its encoders.

    Args:
        predictor: Batch to Prediction.
        codecs: Clip to Tokens and back; `codecs.layout` says which streams there are.
        context_length: positions of a row in training.
        about: what the checkpoint or the export says of itself, in plain types.
    """

    predictor: Predictor
    codecs: Codecs
    context_length: int = DEFAULT_CONTEXT
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, predictor: Predictor, codecs: Codecs, about: Mapping[str, Any]) -> Loaded:
        """From what `read_folder` and `load_predictor` give."""
        length = int(about.get("context_length") or DEFAULT_CONTEXT)
        return cls(predictor, codecs, length, about)

    def rollout(self, prompt: Clip | str, *, seconds: float = 4.0, **choices: Any) -> Rollout:
        """Go on from a prompt.

        Args:
            prompt: a clip in the form that the encoders take, or a text.
            seconds: how long.
            choices: any further argument of `mmpredict.generate.rollout`, such as `seed`.
        """
        clip = Clip(texts=(TextPiece(prompt),)) if isinstance(prompt, str) else prompt
        choices = {"context_length": self.context_length} | choices
        return rollout(self.predictor, self.codecs, clip, seconds=seconds, **choices)

    def to(self, device: torch.device | str) -> Loaded:
        """The same on another device."""
        return replace(self, predictor=self.predictor.to(device))
