"""A checkpoint as a model of lm-evaluation-harness. In: its requests. Out: log P and whether it is
the greedy answer; log P of whole texts; continuations.

    import mmpredict.integrations.lm_eval            # registers the model "mmpredict"
    lm_eval.simple_evaluate(model="mmpredict", model_args="checkpoint=last.ckpt", tasks=["piqa"])

Without the harness the class still stands, so that its contract can be tested; it is then a plain
one that nothing is registered with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from mmpredict.integrations.texts import Texts
from mmpredict.schema import UserError

try:  # the harness wants its models to inherit from its own class
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError:
    LM, register_model = object, None

_MOST = 256  # tokens that are generated where a task does not say


class Request(Protocol):
    """An Instance of the harness; only this is read."""

    args: tuple[Any, ...]


class MMPredictLM(LM):
    """Text of a checkpoint.

    Args:
        checkpoint: written by `mmpredict fit`.
        device: where it works.
        max_length: tokens in sight at once; None for the context of the training.
        batch_size: the harness gives one; texts are read one at a time, so only 1 is taken.
        max_batch_size: as batch_size.

    Raises:
        UserError: the checkpoint has no text, or a batch size is asked for.
    """

    def __init__(  # noqa: PLR0913 - the names that the harness passes
        self,
        checkpoint: str = "",
        device: str | None = None,
        max_length: int | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        *,
        texts: Texts | None = None,
    ) -> None:
        super().__init__()
        if str(batch_size) != "1" or max_batch_size not in (None, 1):
            raise UserError(
                f"batch_size={batch_size}, max_batch_size={max_batch_size}: texts are read one at "
                "a time; leave both out"
            )
        if texts is None:
            from mmpredict.training.checkpoint import load_predictor

            predictor, codecs, about = load_predictor(checkpoint)
            length = max_length or int(about["context_length"])
            texts = Texts(predictor.to(device or "cpu"), codecs, length)
        self.texts = texts

    def loglikelihood(
        self, requests: Sequence[Request], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log P of the continuation, whether it is the greedy one) for each (context,
        continuation)."""
        found = []
        for context, continuation in (_texts_of(request, 2) for request in requests):
            said = self.texts.continued(context, continuation)
            found.append((said.log_p, said.greedy))
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Request], disable_tqdm: bool = False
    ) -> list[float]:
        """log P of each whole text, however long."""
        return [self.texts.whole(*_texts_of(request, 1)) for request in requests]

    def generate_until(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context, cut where a stop text begins."""
        return [self._generated(*_texts_of(request, 2)) for request in requests]

    def _generated(self, context: str, settings: dict[str, Any]) -> str:
        draws = bool(settings.get("do_sample", False))
        known = {"until", "max_gen_toks", "do_sample", "temperature"}
        strange = sorted(set(settings) - known)
        if strange and draws:
            raise UserError(f"cannot draw with {', '.join(strange)}; known are {sorted(known)}")
        until = settings.get("until") or []
        return self.texts.generated(
            context,
            until=[until] if isinstance(until, str) else list(until),
            most=int(settings.get("max_gen_toks", _MOST)),
            temperature=float(settings.get("temperature", 1.0)) if draws else 0.0,
        )


def _texts_of(request: Request, count: int) -> tuple[Any, ...]:
    """The arguments of a request; more of them are pictures or sound."""
    if len(request.args) != count:
        raise UserError(
            f"a request with {len(request.args)} arguments, expected {count}: pictures and sound "
            "are asked through lmms-eval, or with mmpredict's own probes"
        )
    return request.args


if register_model is not None:
    register_model("mmpredict")(MMPredictLM)
