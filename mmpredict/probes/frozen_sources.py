"""All that is decoded from: the model, and what stands beside it. In: a model and its codecs. Out:
tables of labels, and sources with features, one after another, so that one model's features are in
memory at a time.

Shapes: R rows, F features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from mmpredict.model import Predictor
from mmpredict.probes.controls import raw_pixels, raw_sound, text_only_scenes_fit, untrained
from mmpredict.probes.features import (
    Features,
    Given,
    Scenes,
    frame_rate,
    join,
    moments_of,
    name_vectors,
    read_features,
)
from mmpredict.probes.frozen_score import Source
from mmpredict.probes.targets import Table, read_table
from mmpredict.schema import UserError
from mmpredict.tokens import Codecs

SPLITS = {"train": "train", "dev": "dev", "test": "test_iid", "comp": "test_comp"}
# Models are trained on worlds with small seeds; probes see scenes of other worlds.
FIRST_SEED = 900_000_000
MODEL = "model"
TEXT_ONLY = "text-only"


@dataclass(frozen=True)
class Sizes:
    """How many scenes of each part, and how often each is probed.

    Args:
        comp: scenes with colours of shapes that no probe was trained on.
        moments: of each scene.
        seconds: length of a scene.
        seed: of the scenes and of all draws.
    """

    train: int
    dev: int
    test: int
    comp: int
    moments: int = 3
    seconds: float = 2.0
    seed: int = 0

    def scenes(self, codecs: Codecs) -> dict[str, Scenes]:
        """By part. Another codec's frame rate has other frames at the same times."""
        moments = moments_of(frame_rate(codecs), self.moments, self.seconds)
        counts = {"train": self.train, "dev": self.dev, "test": self.test, "comp": self.comp}
        return {
            part: Scenes(SPLITS[part], count, FIRST_SEED + self.seed, moments, self.seconds)
            for part, count in counts.items()
        }


@dataclass(frozen=True)
class Filmed:
    """What is known of the scenes without any model."""

    tables: Mapping[str, Table]
    pixels: Mapping[str, Features]
    sound: Mapping[str, Features]


def film(codecs: Codecs, scenes: Mapping[str, Scenes]) -> Filmed:
    """Film every scene once, for labels and raw features; no clip is kept."""
    tables, pixels, sound = {}, {}, {}
    for part, some in scenes.items():
        truths, seen, heard = [], [], []
        times_s = [frame / frame_rate(codecs) for frame in some.moments]
        for index in range(some.count):
            recording = some.record(index, codecs)
            truths.append(recording.truth)
            if codecs.video is not None:
                seen.append(raw_pixels([recording.clip], some.moments))
            if codecs.audio is not None:
                heard.append(raw_sound([recording.clip], times_s))
        tables[part] = read_table(truths, some.moments)
        if seen:
            pixels[part] = join(seen)
        if heard:
            sound[part] = join(heard)
    return Filmed(tables, pixels, sound)


def model_source(
    predictor: Predictor,
    codecs: Codecs,
    scenes: Mapping[str, Scenes],
    filmed: Filmed,
    *,
    name: str = MODEL,
    given: Given = "clip",
) -> Source:
    """Features of a model that reads the scenes."""
    features = {
        part: read_features(predictor, codecs, some, given=given) for part, some in scenes.items()
    }
    return Source(name, features, filmed.tables, name_vectors(predictor, codecs))


def temporal_sources(
    predictor: Predictor, codecs: Codecs, scenes: Mapping[str, Scenes], filmed: Filmed
) -> Iterator[Source]:
    """The model, without the order of the frames, and without all frames but one."""
    if codecs.video is None:
        return
    parts = {part: scenes[part] for part in ("train", "dev", "test")}
    for name, given in (("shuffled frames", "shuffled"), ("last frame", "last_frame")):
        yield model_source(predictor, codecs, parts, filmed, name=name, given=given)


def baseline_sources(  # noqa: PLR0913 - all that a baseline may be made of
    predictor: Predictor,
    codecs: Codecs,
    scenes: Mapping[str, Scenes],
    filmed: Filmed,
    *,
    inits: int,
    text_only: tuple[Predictor, Codecs] | None,
) -> Iterator[Source]:
    """What the model is held against."""
    parts = {part: scenes[part] for part in ("train", "dev", "test")}
    names_KD = name_vectors(predictor, codecs)
    if filmed.pixels:
        yield Source("raw pixels", filmed.pixels, filmed.tables, names_KD)
    if filmed.sound:
        yield Source("raw sound", filmed.sound, filmed.tables, names_KD)
    for seed in range(inits):
        fresh = untrained(predictor, seed)
        yield model_source(fresh, codecs, parts, filmed, name=f"untrained {seed}")
    if text_only is not None:
        yield _of_text_only(*text_only, codecs, parts, filmed)
    if codecs.text is not None:
        yield model_source(predictor, codecs, parts, filmed, name="captions", given="captions")


def _of_text_only(
    predictor: Predictor,
    codecs: Codecs,
    shown: Codecs,
    scenes: Mapping[str, Scenes],
    filmed: Filmed,
) -> Source:
    """A model that was trained on text alone is fed the same clip if it can take it, else the
    captions."""
    if text_only_scenes_fit(codecs, shown):
        return model_source(predictor, codecs, scenes, filmed, name=TEXT_ONLY)
    if codecs.text is None:
        raise UserError("the text-only model has no text stream; give a checkpoint that has one")
    rates = frame_rate(codecs) / frame_rate(shown)
    scenes = {
        part: replace(some, moments=tuple(round(m * rates) for m in some.moments))
        for part, some in scenes.items()
    }
    return model_source(predictor, codecs, scenes, filmed, name=TEXT_ONLY, given="captions")


def oracle_source(tables: Mapping[str, Table]) -> Source:
    """The truth itself as features, row by row: what the same probes reach at best."""
    features, rows = {}, {}
    for part, table in tables.items():
        count = len(table)
        features[part] = Features(
            ("state",), [table.state_RF[:, None]], {"video": slice(0, 1)}, torch.zeros(1, 3)
        )
        rows[part] = replace(
            table, moment_R=torch.arange(count), name_R=torch.zeros(count, dtype=torch.int64)
        )
    return Source("state oracle", features, rows, None)
