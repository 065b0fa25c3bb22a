"""The contract between the rooms. What flows: Clip -> Tokens -> Batch -> Prediction, and back.

Shapes used everywhere (capital suffix = logical dimension; files add letters in their heads):
    B rows of a batch    L positions of a row    D values per position (or model width, where said)
    T frames             C channels              H W pixels      S samples of a waveform
    K blocks of a stream M predicted blocks      P positions per block
    V vocabulary         R random draws

Words: a *block* is one thing (a text token, an audio chunk, a frame); it takes 1 or more
*positions* of a row. Times are seconds on one clock per document. Masks are True where something
takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum

import torch
from torch import Tensor

TICK_S = 0.04  # one step of the time axis: the length of a default audio chunk (25 ticks a second)


class Modality(IntEnum):
    """The built-in streams; numbers from 3 up are free for others.

    The numbers are also the order of blocks that end at the same time, so that a sound never
    follows the frame that shows its cause.
    """

    AUDIO = 0
    VIDEO = 1
    TEXT = 2


class UserError(ValueError):
    """A mistake that shows only while data are being read: printed whole, exit code 2."""


class Stop(Exception):
    """A run ends before its time, on purpose: its message is printed whole, without a traceback.

    Args:
        code: of the exit: 65 bad data, 70 bad steps, 75 a hang, 130 SIGINT, 143 SIGTERM or SIGUSR1.
        message: why, and how to go on.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)  # both, or it could not be pickled
        self.code, self.message = code, message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class TextPiece:
    """A caption, a line or a sentence; start and end in seconds, or None for both when untimed."""

    text: str
    start_s: float | None = None
    end_s: float | None = None

    def __post_init__(self) -> None:
        if (self.start_s is None) != (self.end_s is None):
            raise ValueError(
                f"text {self.text[:40]!r} has only one of start_s and end_s; give both or none"
            )
        if self.start_s is not None and self.end_s < self.start_s:
            raise ValueError(
                f"text {self.text[:40]!r} ends at {self.end_s} s before its start {self.start_s} s"
            )


@dataclass(frozen=True)
class Series:
    """Vectors in time that are neither picture nor sound: actions, joint angles, forces.

    Args:
        values_TD: (T, D) float32.
        times_s: (T,) float64, when each vector holds, on the clip's clock; rising.
    """

    values_TD: Tensor
    times_s: Tensor

    def __post_init__(self) -> None:
        if self.values_TD.ndim != 2 or len(self.values_TD) != len(self.times_s):
            got = f"{tuple(self.values_TD.shape)} with {len(self.times_s)} times"
            raise ValueError(f"a series is (T, D) with T times, got {got}")


@dataclass(frozen=True)
class Clip:
    """What was recorded, on one clock in seconds from the file's start. Any stream may be missing.

    Args:
        frames_TCHW: uint8 RGB frames, or None.
        times_s: (T,) float64, when each frame is shown; given with the frames.
        waveform_CS: float32 in [-1, 1], or None.
        sample_rate: Hz; given with the waveform.
        waveform_start_s: time of the first sample.
        texts: text in the order in which it stands; timed or not.
        series: further continuous streams by name ("action", "state").
        name: where the clip came from, for messages.
        notices: what reading had to change ("6 channels mixed down to 2").
    """

    frames_TCHW: Tensor | None = None
    times_s: Tensor | None = None
    waveform_CS: Tensor | None = None
    sample_rate: int | None = None
    waveform_start_s: float = 0.0
    texts: tuple[TextPiece, ...] = ()
    series: Mapping[str, Series] = field(default_factory=dict)
    name: str = ""
    notices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.frames_TCHW is not None:
            if self.frames_TCHW.dtype != torch.uint8 or self.frames_TCHW.ndim != 4:
                got = f"{self.frames_TCHW.dtype} {tuple(self.frames_TCHW.shape)}"
                raise ValueError(f"{self.name}: frames are {got}, not uint8 (T, C, H, W)")
            if self.times_s is None or len(self.times_s) != len(self.frames_TCHW):
                got = None if self.times_s is None else len(self.times_s)
                raise ValueError(
                    f"{self.name}: {len(self.frames_TCHW)} frames need as many times_s, got {got}"
                )
        if self.waveform_CS is not None and (self.waveform_CS.ndim != 2 or not self.sample_rate):
            got = f"{tuple(self.waveform_CS.shape)} at {self.sample_rate} Hz"
            raise ValueError(f"{self.name}: a waveform is (C, S) with a sample_rate, got {got}")


@dataclass(frozen=True)
class StreamSpec:
    """What the model and the rollout must know of a stream; made by its encoder, kept in the
    checkpoint.

    Args:
        modality: number of the stream (`Modality`, or 3 and up).
        name: as in metrics, "video".
        vocab_size: number of ids of a discrete stream; 0 for a continuous one.
        width: values per position of a continuous stream; 0 for a discrete one.
        rows, cols: positions of one block, in reading order.
        period_s: seconds between blocks; None where blocks come when they come (text).
        fills_period: a block lasts the period before its time (a chunk of sound); otherwise it
            stands at its time, the start of its period (a frame, an action).
        dtype: of the values that the encoder makes.
        value_range: the least and the largest value that it can make; None without limits.
        own_units: each value of a vector is measured in units of its own.
    """

    modality: int
    name: str
    vocab_size: int = 0
    width: int = 0
    rows: int = 1
    cols: int = 1
    period_s: float | None = None
    fills_period: bool = False
    dtype: torch.dtype = torch.float32
    value_range: tuple[float, float] | None = None
    own_units: bool = False

    @property
    def positions_per_block(self) -> int:
        return self.rows * self.cols

    @property
    def is_discrete(self) -> bool:
        return self.vocab_size > 0


@dataclass(frozen=True)
class Layout:
    """The streams of a run, sorted by modality. Data and model agree through it."""

    streams: tuple[StreamSpec, ...]

    def __post_init__(self) -> None:
        numbers = [spec.modality for spec in self.streams]
        if not numbers or numbers != sorted(set(numbers)):
            raise ValueError(
                f"a layout needs one or more streams with rising, different numbers; got {numbers}"
            )

    def __getitem__(self, modality: int) -> StreamSpec:
        for spec in self.streams:
            if spec.modality == modality:
                return spec
        have = [f"{spec.modality} ({spec.name})" for spec in self.streams]
        raise KeyError(f"the layout has no stream {modality}; it has {', '.join(have)}")

    def __contains__(self, modality: int) -> bool:
        return any(spec.modality == modality for spec in self.streams)


@dataclass(frozen=True)
class Tokens:
    """One stream, encoded.

    Args:
        modality: number of the stream.
        contents: (K,) int64 ids of a discrete stream, or (K, P, D) values (uint8 patches, float16
            mels, float32 vectors).
        end_s: (K,) float64, when each block ends; NaN where it has no time.
    """

    modality: int
    contents: Tensor
    end_s: Tensor


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each continuous stream, (D,) float32 each, by modality."""

    mean: Mapping[int, Tensor]
    std: Mapping[int, Tensor]


@dataclass(frozen=True)
class Places:
    """Where things stand in a batch, as indices. Found on the host before a batch goes to a device,
    so that no step waits for the device to say how many there are.

    Args:
        positions: per modality (N,) int64: row * L + column of each of its contents.
        counted: per modality (M,) int64: which of its blocks count in the loss.
        nth: per modality (M,) int64, always on the host: how many blocks of its stream stand before
            each counted block in its document.
        turns: (T,) int64: row * L + column of the last position before each counted block that is
            not the first of its document.
    """

    positions: Mapping[int, Tensor]
    counted: Mapping[int, Tensor]
    nth: Mapping[int, Tensor]
    turns: Tensor

    @classmethod
    def of(cls, batch: Batch) -> Places:
        """Find them. Reads the device that the batch is on."""
        flat = batch.modality.flatten()
        begins_BL = torch.ones_like(batch.loss_mask)
        begins_BL[:, 1:] = batch.block_id[:, 1:] != batch.block_id[:, :-1]
        begins, counts = begins_BL.flatten(), batch.loss_mask.flatten()
        positions, counted, nth = {}, {}, {}
        for modality in batch.contents:
            mine = (flat == modality).nonzero()[:, 0]
            positions[modality] = mine
            firsts = mine[begins[mine]]
            counted[modality] = counts[firsts].nonzero()[:, 0]
            index = torch.arange(len(firsts), device=flat.device)
            alone = batch.prev_same.flatten()[firsts] < 0
            number = index - torch.where(alone, index, 0).cummax(0).values
            nth[modality] = number[counted[modality]].cpu()
        turn_BL = torch.zeros_like(batch.loss_mask)
        turn_BL[:, :-1] = (
            begins_BL[:, 1:]
            & (batch.doc_id[:, :-1] == batch.doc_id[:, 1:])
            & batch.loss_mask[:, 1:]  # False in padding
        )
        return cls(positions, counted, nth, turn_BL.flatten().nonzero()[:, 0])

    def map(self, function: Callable[[Tensor], Tensor]) -> Places:
        """Apply `function` to every tensor that goes along to a device."""
        positions, counted = (
            {m: function(x) for m, x in of.items()} for of in (self.positions, self.counted)
        )
        return Places(positions, counted, self.nth, function(self.turns))


@dataclass(frozen=True)
class Batch:
    """Packed rows. A document never crosses a row; `doc_id` 0 is padding.

    Args:
        modality: (B, L) int64, number of the stream of each position; -1 in padding.
        block_id: (B, L) int64, rises by one per block within a row.
        doc_id: (B, L) int64, from 1 up within a row.
        positions: (B, L, 3) float32: seconds, patch row, patch column (the latter two centred on
            0).
        end_s: (B, L) float64: when the block ends on its document's clock; NaN if untimed.
        prev_same: (B, L) int64: the same slot of the previous block of the own stream; -1 if none.
        prev_any: (B, L) int64: the last position before this block, any stream; -1 if none.
        loss_mask: (B, L) bool: True counts in the loss.
        contents: per modality (N,) ids or (N, D) values of all its positions, row by row in their
            order.
        places: indices of all this; found when the batch is pinned or leaves the host.
    """

    modality: Tensor
    block_id: Tensor
    doc_id: Tensor
    positions: Tensor
    end_s: Tensor
    prev_same: Tensor
    prev_any: Tensor
    loss_mask: Tensor
    contents: Mapping[int, Tensor]
    places: Places | None = None

    @property
    def num_rows(self) -> int:
        return self.doc_id.shape[0]

    @property
    def num_tokens(self) -> int:
        """Useful positions: padding does not count. Reads the device."""
        return int((self.doc_id > 0).sum())

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Apply `function` to every tensor. It may change shapes: places are to be found anew."""
        apart = ("contents", "places")
        tensors = {
            f.name: function(getattr(self, f.name)) for f in fields(self) if f.name not in apart
        }
        contents = {m: function(x) for m, x in self.contents.items()}
        return replace(self, contents=contents, places=None, **tensors)

    def placed(self) -> Batch:
        """The same, with its places."""
        return self if self.places is not None else replace(self, places=Places.of(self))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Move to a device; float64 times become float32 where the device has no float64. To a
        CUDA device by pinned memory, so that the host does not wait for the copies."""
        device = torch.device(device)
        if device.type == "cuda" and not self.doc_id.is_cuda and not self.doc_id.is_pinned():
            return self.pin_memory().to(device, non_blocking=True)

        def moved(x: Tensor) -> Tensor:
            if device.type == "mps" and x.dtype == torch.float64:
                x = x.float()
            return x.to(device, non_blocking=non_blocking)

        if device.type == "cpu":
            return self.map(moved)
        return replace(self.map(moved), places=self.placed().places.map(moved))

    def pin_memory(self) -> Batch:
        places = self.placed().places.map(Tensor.pin_memory)
        return replace(self.map(Tensor.pin_memory), places=places)


@dataclass(frozen=True)
class IdsPrediction:
    """What was said of a discrete stream's counted blocks: logits (M, V), targets (M,)."""

    logits_MV: Tensor
    targets_M: Tensor


@dataclass(frozen=True)
class ValuesPrediction:
    """What was said of the counted blocks of a continuous stream, all in standardised units.

    Args:
        mean_MPD: the regression of the block from what came before it.
        targets_MPD: the block.
        denoised_RMPD: what the flow head makes of the block blended with noise; None without a
            flow head.
        level_RM: share of signal in that blend, 0 (noise) to 1 (signal).
        nats_MP: -log chance of what stands at each position, per value or per code, by a head that
            says one; None for others.
    """

    mean_MPD: Tensor
    targets_MPD: Tensor
    denoised_RMPD: Tensor | None = None
    level_RM: Tensor | None = None
    nats_MP: Tensor | None = None


@dataclass(frozen=True)
class LatentPrediction:
    """What was said of the features that an image encoder finds in the counted blocks, beside
    those features, normed position by position: (M, P, F) each."""

    said_MPF: Tensor
    targets_MPF: Tensor


@dataclass(frozen=True)
class Prediction:
    """What the predictor says of a batch, stream by stream, and which stream it expects next.

    Args:
        streams: per modality; a stream with no counted block in the batch is absent.
        next_stream: logits over the layout's streams at the end of every block that a counted one
            follows.
        latents: per modality, where features are said beside the values, of the same blocks.
    """

    streams: Mapping[int, IdsPrediction | ValuesPrediction]
    next_stream: IdsPrediction | None
    latents: Mapping[int, LatentPrediction] = field(default_factory=dict)
