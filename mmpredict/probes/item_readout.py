"""A readout of frozen activations, trained on items of one split and asked those of another. In:
suites. Out: rows as of `run_suite`, for the model and for the controls beside it.

The model reads the evidence and then the question; what it holds at the last word of the question
goes into a logistic regression on the answer. This is how worlds whose words a model never learned
(Doom) and benchmarks with a training split (Physion) are asked. Layer and pooling are chosen on
the dev suite; the test suite is asked once.

Shapes: M items, L positions of a row, D width, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmpredict.model import Predictor
from mmpredict.probes.controls import untrained
from mmpredict.probes.evidence import EvidenceError, Footage, Shown, spoken, words
from mmpredict.probes.features import layer_names, layer_outputs, read_together
from mmpredict.probes.items import Item, Suite
from mmpredict.probes.readouts import Design, logistic
from mmpredict.probes.run import item_row
from mmpredict.schema import Batch, Modality, Tokens, UserError
from mmpredict.sequence import interleave, pack
from mmpredict.tokens import Codecs

PARTS = ("train", "dev", "test")
LEAST_ITEMS = 16  # of a family in each part
CHUNKS = 12  # of sound, at the end, that the raw control sees
_HASHED = 64  # columns of the question's words in the raw control

Row = dict[str, Any]


def ask_readout(
    predictor: Predictor,
    codecs: Codecs,
    suites: Mapping[str, Suite],
    variants: Sequence[str],
    *,
    seed: int = 0,
) -> dict[str, list[Row]]:
    """Train and ask, per family and variant.

    Args:
        predictor: frozen, in evaluation mode.
        codecs: its encoders.
        suites: "train", "dev" and "test", of the same families and without a common scene.
        variants: of the evidence.
        seed: of the untrained control and of permuted labels.

    Returns:
        rows by who was asked: "model", and the controls "raw input", "untrained", "majority" and
        "permuted labels" (the last must be at chance: if not, the splits leak).

    Raises:
        UserError: splits that share a scene, or too few items of a family.
    """
    _check(suites)
    found: dict[str, list[Row]] = {}
    readers: dict[str, Callable[[Footage], Reading]] = {
        "model": lambda footage: ModelReading(predictor, codecs, footage),
        "untrained": lambda footage: ModelReading(untrained(predictor, seed), codecs, footage),
        "raw input": lambda footage: RawReading(codecs, footage),
    }
    for variant in variants:
        for name, make in readers.items():
            readings = {
                part: make(Footage(suites[part].sources, codecs, [variant])) for part in PARTS
            }
            for items in _families(suites, variant).values():
                data = {part: readings[part].read(items[part], variant) for part in PARTS}
                fitted = _Fitted(data, items, seed=seed, permuted=False)
                found.setdefault(name, []).extend(fitted.rows(variant))
                if name == "model":
                    permuted = _Fitted(data, items, seed=seed, permuted=True)
                    found.setdefault("permuted labels", []).extend(permuted.rows(variant))
                    found.setdefault("majority", []).extend(_majority(items, variant))
    return found


def _check(suites: Mapping[str, Suite]) -> None:
    missing = [part for part in PARTS if part not in suites]
    if missing:
        raise UserError(f"a readout needs the suites {', '.join(PARTS)}; missing: {missing}")
    clusters = {part: {item.cluster for item in suites[part].items} for part in PARTS}
    for one, two in (("train", "dev"), ("train", "test"), ("dev", "test")):
        shared = sorted(clusters[one] & clusters[two])
        if shared:
            raise UserError(
                f"the suites {one} and {two} share {len(shared)} scenes ({shared[0]!r}, ...): what "
                "is trained on one is not held out from the other"
            )


def _families(suites: Mapping[str, Suite], variant: str) -> dict[str, dict[str, list[Item]]]:
    """mc items of this variant by family and part."""
    found: dict[str, dict[str, list[Item]]] = {}
    for family in suites["test"].families:
        parts = {
            part: [
                item
                for item in suites[part].items
                if item.family == family and item.score == "mc" and variant in item.variants
            ]
            for part in PARTS
        }
        if not parts["test"]:
            continue
        few = {part: len(items) for part, items in parts.items() if len(items) < LEAST_ITEMS}
        if few:
            raise UserError(
                f"family {family!r}, evidence {variant!r}: {few} items; a readout needs at least "
                f"{LEAST_ITEMS} in each of {', '.join(PARTS)}"
            )
        found[family] = parts
    return found


class Reading:
    """Features of items: a list of candidates (M, F), and what could not be shown."""

    def __init__(self, codecs: Codecs, footage: Footage) -> None:
        self.codecs, self.footage = codecs, footage

    def read(self, items: Sequence[Item], variant: str) -> tuple[list[Tensor], dict[int, str]]:
        shown: dict[int, Shown] = {}
        errors: dict[int, str] = {}
        for number, item in enumerate(items):
            try:
                shown[number] = self.footage.shown(item.evidence[0], variant)
            except EvidenceError as error:
                errors[number] = str(error)
        if not shown:
            first = next(iter(errors.values()), "no items")
            raise UserError(f"nothing of {len(items)} items could be shown: {first}")
        features = self.features([(shown[n], items[n].question) for n in sorted(shown)])
        return features, errors

    def features(self, asked: Sequence[tuple[Shown, str]]) -> list[Tensor]:
        raise NotImplementedError


class ModelReading(Reading):
    """Per layer: the last position, and the mean of the last block of every stream."""

    def __init__(self, predictor: Predictor, codecs: Codecs, footage: Footage) -> None:
        super().__init__(codecs, footage)
        self.predictor = predictor

    @torch.no_grad()
    def features(self, asked: Sequence[tuple[Shown, str]]) -> list[Tensor]:
        device = next(self.predictor.parameters()).device
        rows = [self._row(shown, question) for shown, question in asked]
        layers = len(layer_names(self.predictor))
        found: list[list[Tensor]] = [[] for _ in range(2 * layers)]
        for here in read_together(rows, lambda row: row.modality.shape[1]):
            length = max(row.modality.shape[1] for row in here)
            batch = pack([[row] for row in here], length).to(device)
            for layer, x_BLD in enumerate(layer_outputs(self.predictor, batch)):
                for b, row in enumerate(here):
                    size = row.modality.shape[1]
                    x_LD = x_BLD[b, :size].float().cpu()
                    found[2 * layer].append(x_LD[-1])
                    found[2 * layer + 1].append(
                        _last_blocks(x_LD, row.modality[0], row.block_id[0])
                    )
        return [torch.stack(candidate) for candidate in found]

    def _row(self, shown: Shown, question: str) -> Batch:
        streams = list(shown.streams)
        asked = words(self.codecs, spoken([question], shown.end_s)) if question else None
        if asked is not None:
            streams = _with_words(streams, asked)
        return interleave(streams, self.codecs.layout)


def _with_words(streams: Sequence[Tokens], asked: Tokens) -> list[Tokens]:
    """The question's tokens after those that were told, if any were."""
    told = [t for t in streams if t.modality == Modality.TEXT]
    if told:
        contents = torch.cat([told[0].contents, asked.contents])
        asked = Tokens(asked.modality, contents, torch.cat([told[0].end_s, asked.end_s]))
    return [*(t for t in streams if t.modality != Modality.TEXT), asked]


def _last_blocks(x_LD: Tensor, modality_L: Tensor, block_L: Tensor) -> Tensor:
    """The last position of the row beside the mean of the last frame and of the latest chunks."""
    parts = [x_LD[-1]]
    for modality, count in ((Modality.VIDEO, 1), (Modality.AUDIO, CHUNKS)):
        mine_L = modality_L == modality
        if mine_L.any():
            latest = block_L[mine_L].unique()[-count:]
            parts.append(x_LD[mine_L & torch.isin(block_L, latest)].mean(0))
        else:
            parts.append(torch.zeros_like(x_LD[-1]))
    return torch.cat(parts)


class RawReading(Reading):
    """The last frame's own pixels, the last half second's own spectrum, and the question's words:
    what can be told without a model."""

    def features(self, asked: Sequence[tuple[Shown, str]]) -> list[Tensor]:
        rows = []
        for shown, question in asked:
            parts = [_hashed(question)]
            for tokens in shown.streams:
                if tokens.modality in shown.blank:
                    continue  # it says nothing, and a short clip has none of it
                contents = tokens.contents.float()
                if tokens.modality == Modality.VIDEO:
                    parts.append(contents[-1].flatten() / 255)
                elif tokens.modality == Modality.AUDIO:
                    parts.append(contents[-CHUNKS:].mean(0).flatten())
                else:
                    parts.append(_hashed(self.codecs.text.text_of(tokens.contents.tolist())))
            rows.append(torch.cat(parts))
        return [torch.stack(rows)]


def _hashed(text: str) -> Tensor:
    """(_HASHED,) counts of words in columns by a fixed hash."""
    counts = torch.zeros(_HASHED)
    for word in text.lower().split():
        counts[sum(byte * (place + 1) for place, byte in enumerate(word.encode())) % _HASHED] += 1
    return counts


def _labels(items: Mapping[str, Sequence[Item]]) -> tuple[list[str] | None, dict[str, Tensor]]:
    """Class names where all items have the same choices, else None: then the class is the place
    among the choices."""
    sets = {frozenset(item.choices) for part in PARTS for item in items[part]}
    names = sorted(next(iter(sets))) if len(sets) == 1 else None
    labels = {
        part: torch.tensor(
            [
                item.answer if names is None else names.index(item.choices[item.answer])
                for item in items[part]
            ]
        )
        for part in PARTS
    }
    return names, labels


class _Fitted:
    """A logistic readout of one family; candidate features are chosen by the log loss on dev."""

    def __init__(
        self,
        data: Mapping[str, tuple[list[Tensor], dict[int, str]]],
        items: Mapping[str, Sequence[Item]],
        *,
        seed: int,
        permuted: bool,
    ) -> None:
        self.items, self.errors = items["test"], data["test"][1]
        self.names, labels = _labels(items)
        kept = {
            part: labels[part][[n for n in range(len(items[part])) if n not in data[part][1]]]
            for part in PARTS
        }
        if permuted:
            generator = torch.Generator().manual_seed(seed)
            for part in ("train", "dev"):
                kept[part] = kept[part][torch.randperm(len(kept[part]), generator=generator)]
        most = max(len(item.choices) for part in PARTS for item in items[part])
        classes = most if self.names is None else len(self.names)
        best = None
        for candidate in range(len(data["train"][0])):
            x = {part: data[part][0][candidate] for part in PARTS}
            design = Design.fit(x["train"], None)
            rows = {
                part: design.rows(x[part], torch.arange(len(x[part])), torch.zeros(0))
                for part in PARTS
            }
            fitted = logistic((rows["train"], kept["train"]), (rows["dev"], kept["dev"]), classes)
            if best is None or fitted.dev[0] < best[0]:
                best = (fitted.dev[0], fitted(rows["test"]).log_softmax(-1))
        self.log_p_MC = best[1]

    def rows(self, variant: str) -> list[Row]:
        """One per test item."""
        found, at = [], 0
        for number, item in enumerate(self.items):
            if number in self.errors:
                found.append(item_row(item, variant, {}, self.errors[number]))
                continue
            log_p = self.log_p_MC[at].tolist()
            at += 1
            columns = range(len(item.choices))
            if self.names is not None:
                columns = [self.names.index(choice) for choice in item.choices]
            found.append(item_row(item, variant, {"readout": [log_p[c] for c in columns]}, ""))
        return found


def _majority(items: Mapping[str, Sequence[Item]], variant: str) -> list[Row]:
    """The commonest answer of the training items, always."""
    names, labels = _labels(items)
    commonest = int(torch.bincount(labels["train"]).argmax())
    found = []
    for item in items["test"]:
        said = [
            float((n if names is None else names.index(choice)) == commonest)
            for n, choice in enumerate(item.choices)
        ]
        found.append(item_row(item, variant, {"readout": said}, ""))
    return found
