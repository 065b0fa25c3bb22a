"""What the model says, to look at and to listen to. In: held-out documents. Out: files in samples/.

Frames, sounds and vectors are next-block predictions: each is made from the true past, by itself.
Text is shown twice: the likeliest next token at every place of the true text, and what the model
writes.

Shapes: N documents, K blocks of a stream, P positions per block, D values, L positions of a row.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmpredict.generate import rollout, write_rollout, write_wav
from mmpredict.model import Predictor
from mmpredict.schema import Batch, Clip, Modality, StreamSpec, Tokens
from mmpredict.sequence import first_blocks, pack, separate, unpack
from mmpredict.tokens import Codecs
from mmpredict.training.report_figures import (
    amplified_difference,
    lines,
    on_white,
    read_png,
    spectrograms,
    strip,
    write_png,
)

FRAMES = 8  # columns of a strip
STRIPS, SOUNDS, SERIES, TEXTS = 2, 1, 1, 3  # documents shown
WRITTEN_TOKENS = 96
WRITING_S = 10.0  # writing stops here: a big model on a small machine must not hold up the run
PROMPT_SHARE = 0.5
LONGEST_ROLLOUT_S = 4.0
LEAST_ROLLOUT_S = 0.5


@dataclass(frozen=True)
class Subject:
    """Who is shown.

    Args:
        predictor: in evaluation mode, on `device`.
        codecs: its encoders.
        device: where it works.
        precision: a context for calls of the predictor alone: sound decoded in bfloat16 is noise.
    """

    predictor: Predictor
    codecs: Codecs
    device: torch.device | str = "cpu"
    precision: Callable[[], AbstractContextManager] = nullcontext


@dataclass(frozen=True)
class Guess:
    """Blocks of one continuous stream of one document, all (K, P, D) in the stream's own units."""

    end_s: Tensor  # (K,)
    truth: Tensor
    previous: Tensor
    mean: Tensor
    sample: Tensor


@dataclass(frozen=True)
class Picture:
    """An image (height, width, 3) uint8 or a mono sound (S,) float32, for other viewers."""

    name: str
    rgb: np.ndarray | None = None
    sound: Tensor | None = None
    sample_rate: int = 0

    def log(self, board: Any, step: int) -> None:
        """Show it in a TensorBoard `SummaryWriter`."""
        if self.rgb is not None:
            board.add_image(self.name, self.rgb, step, dataformats="HWC")
        if self.sound is not None:
            board.add_audio(self.name, self.sound[None], step, sample_rate=self.sample_rate)


def first_documents(batch: Batch, count: int = max(STRIPS, SOUNDS, SERIES, TEXTS)) -> list[Batch]:
    """The leading documents of a batch, as one-document rows on the host."""
    rows = unpack(batch.to("cpu"))
    return [document for row in rows for document in row][:count]


def draw(stem: Path, subject: Subject, documents: list[Batch]) -> list[Picture]:
    """Everything that can be shown of these documents, as files that begin with `stem`."""
    pictures = draw_blocks(next_blocks(subject, documents), subject.codecs, stem)
    if subject.codecs.text is not None:
        write_json(beside(stem, "text.json"), guess_text(subject, documents))
    return pictures


def next_blocks(subject: Subject, documents: list[Batch], seed: int = 0) -> list[dict[int, Guess]]:
    """Per document and continuous stream: blocks that have a predecessor, and their forecasts."""
    batch = _side_by_side(documents).to(subject.device)
    generator = torch.Generator(batch.doc_id.device).manual_seed(seed)
    with subject.precision():
        hidden = subject.predictor.hidden(batch)
    found: list[dict[int, Guess]] = [{} for _ in documents]
    for spec in subject.predictor.layout.streams:
        if spec.is_discrete or spec.modality not in batch.contents:
            continue
        row_K, end_K = _blocks(batch, spec)
        scored_K = subject.predictor.has_previous(batch, spec.modality)
        shown_K = _shown(scored_K, row_K, spec)
        if not len(shown_K):
            continue
        with subject.precision():
            made = _forecasts(subject.predictor, batch, hidden, spec, shown_K, generator)
        for n in range(len(documents)):
            mine = (row_K[shown_K] == n).cpu()
            if mine.any():
                times = end_K[shown_K].cpu()[mine]
                found[n][spec.modality] = Guess(times, *(x[mine] for x in made))
    return found


def _forecasts(  # noqa: PLR0913 - what one stream's forecast needs
    predictor: Predictor,
    batch: Batch,
    hidden: Tensor,
    spec: StreamSpec,
    shown_K: Tensor,
    generator: torch.Generator,
) -> list[Tensor]:
    """Truth, previous, mean and sample of these blocks, in the stream's own units, on the host."""
    head, scale = predictor.heads[spec.name], predictor.embed.standardise[spec.name]
    z = predictor.condition(batch, hidden, spec.modality)[shown_K]
    truth = predictor.embed.values(batch, spec.modality)[shown_K]
    previous = predictor.previous(batch, spec.modality)[shown_K]
    sample = head.sample(z, previous, generator=generator)[0]
    made = (truth, previous, head.mean(z, previous), sample)
    return [scale.inverse(x.float()).float().cpu() for x in made]


def _side_by_side(documents: list[Batch]) -> Batch:
    """One document per row."""
    return pack([[d] for d in documents], max(d.modality.shape[1] for d in documents))


def _blocks(batch: Batch, spec: StreamSpec) -> tuple[Tensor, Tensor]:
    """(K,) row and (K,) end time of every block of a stream."""
    mine = batch.modality == spec.modality
    first = slice(None, None, spec.positions_per_block)
    return mine.nonzero()[:, 0][first], batch.end_s[mine][first]


def _shown(scored_K: Tensor, row_K: Tensor, spec: StreamSpec) -> Tensor:
    """Indices of the blocks to look at: a few frames per document, evenly spread; all others."""
    kept = []
    for row in row_K.unique().tolist():
        index = (scored_K & (row_K == row)).nonzero()[:, 0]
        if spec.modality == Modality.VIDEO and len(index) > FRAMES:
            index = index[torch.linspace(0, len(index) - 1, FRAMES).round().long().to(index.device)]
        kept.append(index)
    return torch.cat(kept) if kept else row_K.new_zeros(0)


def draw_blocks(guesses: list[dict[int, Guess]], codecs: Codecs, stem: Path) -> list[Picture]:
    """Strips, spectrograms, sounds and lines: `<stem>-frames-1.png`, `-sound-1.png` and .wav,
    `-series-action-1.png`."""
    pictures = []
    frames = [g[Modality.VIDEO] for g in guesses if Modality.VIDEO in g]
    for n, guess in enumerate(frames[:STRIPS], start=1):
        image = _strip(guess, codecs)
        write_png(beside(stem, f"frames-{n}.png"), image)
        pictures.append(Picture(f"frames/{n}", rgb=on_white(image)))
    sounds = [g[Modality.AUDIO] for g in guesses if Modality.AUDIO in g]
    for n, guess in enumerate(sounds[:SOUNDS], start=1):
        image = _spectrograms(guess, codecs)
        write_png(beside(stem, f"sound-{n}.png"), image)
        pictures.append(Picture(f"sound/{n}", rgb=on_white(image)))
        for kind in ("truth", "sample"):
            clip = _decoded(codecs, Modality.AUDIO, getattr(guess, kind), guess.end_s)
            path = beside(stem, f"sound-{n}-{kind}.wav")
            write_wav(path, clip.waveform_CS, clip.sample_rate)
            mono = clip.waveform_CS.mean(dim=0)
            pictures.append(Picture(f"sound/{n}/{kind}", sound=mono, sample_rate=clip.sample_rate))
    for name, codec in codecs.series.items():
        vectors = [g[codec.modality] for g in guesses if codec.modality in g]
        for n, guess in enumerate(vectors[:SERIES], start=1):
            image = _lines(guess, name)
            write_png(beside(stem, f"series-{name}-{n}.png"), image)
            pictures.append(Picture(f"{name}/{n}", rgb=on_white(image)))
    return pictures


def _strip(guess: Guess, codecs: Codecs) -> np.ndarray:
    def frames(values: Tensor) -> Tensor:
        return _decoded(codecs, Modality.VIDEO, values, guess.end_s).frames_TCHW

    truth, mean, previous = frames(guess.truth), frames(guess.mean), frames(guess.previous)
    rows = {
        "truth": truth,
        "predicted mean": mean,
        "predicted sample": frames(guess.sample),
        "error of the mean x2": amplified_difference(truth, mean),
        "error of copying x2": amplified_difference(truth, previous),
    }
    return strip(rows, guess.end_s.tolist())


def _spectrograms(guess: Guess, codecs: Codecs) -> np.ndarray:
    codec = codecs.audio

    def spectra(values: Tensor) -> Tensor:
        chunks = values.flatten(1).unflatten(1, (codec.channels, codec.hops, codec.num_mels))
        return chunks.permute(1, 3, 0, 2).flatten(2)

    rows = {
        "truth": spectra(guess.truth),
        "predicted mean": spectra(guess.mean),
        "predicted sample": spectra(guess.sample),
    }
    return spectrograms(
        rows,
        start_s=float(guess.end_s[0]) - codec.chunk_s,
        end_s=float(guess.end_s[-1]),
        mel_hz=_mel_centres(codec.num_mels, codec.sample_rate),
    )


def _lines(guess: Guess, name: str) -> np.ndarray:
    rows = {
        "truth": guess.truth,
        "predicted mean": guess.mean,
        "predicted sample": guess.sample,
    }
    vectors = {label: values.flatten(1) for label, values in rows.items()}
    return lines(vectors, guess.end_s.tolist(), name)


def _mel_centres(num_mels: int, sample_rate: int) -> list[float]:
    """Hz; evenly spaced on the mel scale 2595 log10(1 + f / 700), from 20 Hz to half the rate."""
    low, high = (2595 * np.log10(1 + f / 700) for f in (20.0, sample_rate / 2))
    mels = np.linspace(low, high, num_mels + 2)[1:-1]
    return (700 * (10 ** (mels / 2595) - 1)).tolist()


def _decoded(codecs: Codecs, modality: int, values: Tensor, end_s: Tensor) -> Clip:
    return codecs.by_modality[modality].decode(Tokens(modality, values, end_s))


def beside(stem: Path, ending: str) -> Path:
    return stem.with_name(f"{stem.name}-{ending}")


def guess_text(subject: Subject, documents: list[Batch]) -> list[dict[str, Any]]:
    """Per document with text: the true text, and [token, likeliest token, chance of the true]."""
    documents = _with_text(documents)
    if not documents:
        return []
    batch = _side_by_side(documents).to(subject.device)
    chance_KV = _logits(subject, batch).softmax(dim=-1).cpu()
    row_K = _blocks(batch, _text_spec(subject))[0].cpu()
    ids_K = batch.contents[Modality.TEXT].cpu()
    true_K = chance_KV.gather(1, ids_K[:, None])[:, 0]
    best_K = chance_KV.argmax(dim=1)
    shown = []
    for n in range(len(documents)):
        mine = row_K == n
        ids, best, chance = (x[mine].tolist() for x in (ids_K, best_K, true_K))
        words = [
            [_words(subject.codecs, [i]), _words(subject.codecs, [b]), round(p, 4)]
            for i, b, p in zip(ids, best, chance, strict=True)
        ]
        shown.append({"truth": _words(subject.codecs, ids), "tokens": words})
    return shown


def _with_text(documents: list[Batch]) -> list[Batch]:
    return [d for d in documents if Modality.TEXT in d.contents][:TEXTS]


def _text_spec(subject: Subject) -> StreamSpec:
    return subject.predictor.layout[Modality.TEXT]


def _logits(subject: Subject, batch: Batch) -> Tensor:
    spec = _text_spec(subject)
    with subject.precision():
        hidden = subject.predictor.hidden(batch)
        z_KZ = subject.predictor.condition(batch, hidden, spec.modality)[:, 0]
        return subject.predictor.heads[spec.name].logits(z_KZ).float()


def _words(codecs: Codecs, ids: list[int]) -> str:
    """Text of the ids, a line per piece."""
    pieces: list[list[int]] = [[]]
    for token in ids:
        if token == codecs.text.end_id:
            pieces.append([])
        else:
            pieces[-1].append(token)
    return "\n".join(codecs.text.text_of(piece) for piece in pieces)


def add_written_text(stem: Path, subject: Subject, documents: list[Batch]) -> None:
    """Add what the model writes by itself to the file of `draw`."""
    if subject.codecs.text is None:
        return
    path = beside(stem, "text.json")
    shown = json.loads(path.read_text(encoding="utf-8"))
    written = write_text(subject, documents)
    write_json(path, [old | new for old, new in zip(shown, written, strict=True)])


def write_text(subject: Subject, documents: list[Batch]) -> list[dict[str, str]]:
    """Per document with text: what the model writes, token by token at the times of the true ones.

    It takes the likeliest token, and hears and sees the true clip up to there. Where there is only
    text, the first half of the true text is given.
    """
    documents = _with_text(documents)
    if not documents:
        return []
    batch = _side_by_side(documents)
    row_K = _blocks(batch, _text_spec(subject))[0]
    ids_K = batch.contents[Modality.TEXT].clone()
    places = [(row_K == n).nonzero()[:, 0].tolist() for n in range(len(documents))]
    given = [len(p) // 2 * (len(d.contents) == 1) for p, d in zip(places, documents, strict=True)]
    batch, stop = batch.to(subject.device), time.monotonic() + WRITING_S
    done = 0
    while done < WRITTEN_TOKENS and time.monotonic() < stop:
        here = [p[g + done] for p, g in zip(places, given, strict=True) if g + done < len(p)]
        if not here:
            break
        contents = {**batch.contents, int(Modality.TEXT): ids_K.to(subject.device)}
        logits_KV = _logits(subject, replace(batch, contents=contents))
        ids_K[here] = logits_KV[here].argmax(dim=-1).cpu()
        done += 1
    return [
        {
            "given": _words(subject.codecs, ids_K[p[:g]].tolist()),
            "written": _words(subject.codecs, ids_K[p[g : g + done]].tolist()),
        }
        for p, g in zip(places, given, strict=True)
    ]


def write_json(path: Path, content: list[Any] | dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def roll_on(
    stem: Path, subject: Subject, documents: list[Batch], *, context_length: int
) -> list[Picture]:
    """Let the model go on from the first half of a document with frames, or else sound, or else
    vectors."""
    predictor, codecs = subject.predictor, subject.codecs
    document = max(documents, key=_worth_showing)
    prompt = first_blocks(document, max(1, int(document.modality.shape[1] * PROMPT_SHARE)))
    start_s, end_s = (float(d.end_s.nan_to_num().max()) for d in (prompt, document))
    seconds = min(LONGEST_ROLLOUT_S, max(LEAST_ROLLOUT_S, end_s - start_s))
    if not _worth_showing(document)[0]:
        return []
    clip = codecs.decode(separate(prompt, predictor.layout))
    made = rollout(predictor, codecs, clip, seconds=seconds, seed=0, context_length=context_length)
    files = write_rollout(made, beside(stem, "rollout"))
    about = {
        "prompt_end_s": made.prompt_end_s,
        "notices": list(made.notices),
        "texts": [[piece.text, piece.start_s, piece.end_s] for piece in made.clip.texts],
    }
    write_json(beside(stem, "rollout.json"), about)
    pictures = [Picture("rollout", rgb=read_png(f)) for f in files if f.suffix == ".png"]
    if made.clip.waveform_CS is not None:
        mono = made.clip.waveform_CS.mean(dim=0)
        pictures.append(Picture("rollout", sound=mono, sample_rate=made.clip.sample_rate))
    return pictures


def _worth_showing(document: Batch) -> tuple[int, int]:
    """Frames before sound before vectors before text; then the longer one."""
    worth = [Modality.VIDEO in document.contents, Modality.AUDIO in document.contents]
    worth.append(max(document.contents) > Modality.TEXT)
    return sum(2 ** (2 - i) * has for i, has in enumerate(worth)), document.modality.shape[1]
