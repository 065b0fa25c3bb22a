"""Plain text, as language models are asked of it. In: strings. Out: log P of tokens, and greedy or
drawn continuations.

A text is one piece without times; a text that follows another goes on inside of its piece. The END
of a piece is not part of what is scored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmpredict.generate import rollout
from mmpredict.model import Predictor
from mmpredict.schema import Clip, Modality, TextPiece, Tokens, UserError
from mmpredict.sequence import interleave
from mmpredict.tokens import Codecs


@dataclass(frozen=True)
class Continued:
    """How likely a continuation is.

    Args:
        log_p: in nats.
        greedy: whether every token is the likeliest.
    """

    log_p: float
    greedy: bool


class Texts:
    """Asks a predictor about texts.

    Args:
        predictor: in evaluation mode.
        codecs: its encoders.
        context_length: tokens in sight at once; what is further back is cut.

    Raises:
        UserError: the checkpoint has no text.
    """

    def __init__(self, predictor: Predictor, codecs: Codecs, context_length: int) -> None:
        if codecs.text is None:
            have = ", ".join(spec.name for spec in codecs.layout.streams)
            raise UserError(f"this checkpoint has no text stream, only {have}; ask one that has")
        self.predictor, self.codecs = predictor, codecs
        self.context_length = context_length
        self.spec = codecs.layout[Modality.TEXT]

    def ids(self, text: str) -> list[int]:
        """Tokens of a text, without END."""
        if not text:
            return []
        tokens = self.codecs.text.encode(Clip(texts=(TextPiece(text),)))
        return tokens.contents.tolist()[:-1]

    def continued(self, context: str, continuation: str) -> Continued:
        """How likely `continuation` follows `context`, which may be empty.

        Spaces at the end of the context count as the start of the continuation, since most
        vocabularies have them in front of words.

        Raises:
            UserError: the continuation alone is longer than what the model sees.
        """
        bare = context.rstrip(" ")
        whole, before = self.ids(context + continuation), self.ids(bare)
        count = len(whole) - len(before)
        if count > self.context_length:
            raise UserError(
                f"a continuation of {count} tokens is longer than the {self.context_length} that "
                f"the model sees: {continuation[:40]!r}..."
            )
        log_p, greedy = self._log_p(whole[-self.context_length :])
        own = slice(len(log_p) - count, None)
        return Continued(math.fsum(log_p[own]), all(greedy[own]))

    def whole(self, text: str) -> float:
        """log P of a text from its first token on; of a long one in windows, so that each token is
        scored once and sees as much as fits."""
        ids, total, done = self.ids(text), 0.0, 0
        while done < len(ids):
            end = min(len(ids), done + self.context_length)
            log_p, _ = self._log_p(ids[max(0, end - self.context_length) : end])
            total += math.fsum(log_p[len(log_p) - (end - done) :])
            done = end
        return total

    def generated(
        self, context: str, *, until: Sequence[str] = (), most: int = 256, temperature: float = 0.0
    ) -> str:
        """What follows a context, up to the first of `until` or the end of the piece.

        Args:
            context: not empty.
            most: tokens, at most.
            temperature: 0 takes the likeliest.

        Raises:
            UserError: the context is empty.
        """
        if not context:
            raise UserError("nothing can be generated after an empty context; give some text")
        gone_on = rollout(
            self.predictor,
            self.codecs,
            Clip(texts=(TextPiece(context),)),
            seconds=1.0,  # without meaning for text
            streams=("text",),
            text_temperature=temperature,
            context_length=self.context_length,
            max_tokens=most,
        )
        ids = [
            i for t in gone_on.tokens if t.modality == Modality.TEXT for i in t.contents.tolist()
        ]
        end = self.codecs.text.end_id
        said = self.codecs.text.text_of(ids[: ids.index(end)] if end in ids else ids[:most])
        cuts = [said.index(stop) for stop in until if stop and stop in said]
        return said[: min(cuts)] if cuts else said

    @torch.no_grad()
    def _log_p(self, ids: Sequence[int]) -> tuple[list[float], list[bool]]:
        """Of every token of a row, and whether it is the likeliest."""
        if not ids:
            return [], []
        model = self.predictor
        z_TD = model.starts[self.spec.name][1][None]
        if len(ids) > 1:
            untimed = torch.full((len(ids) - 1,), math.nan, dtype=torch.float64)
            tokens = Tokens(self.spec.modality, torch.tensor(ids[:-1]), untimed)
            row = interleave([tokens], self.codecs.layout).to(z_TD.device)
            z_TD = torch.cat([z_TD, model.hidden(row)[0]])
        log_p_TV = model.heads[self.spec.name].logits(z_TD).float().log_softmax(-1)
        ids_T = torch.tensor(ids, device=log_p_TV.device)
        own_T = log_p_TV.gather(1, ids_T[:, None])[:, 0]
        return own_T.tolist(), (log_p_TV.argmax(-1) == ids_T).tolist()
