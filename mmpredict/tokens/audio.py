"""Sound to log-mel chunks and back. In: a Clip with a waveform. Out: one block (1 position) per
chunk.

A chunk lies side by side for both ears, so that level differences, and with them direction,
survive. Each spectrum looks only back: frame j covers the samples that END at (j + 1) * hop, so a
chunk never contains sound from after its end time.

Shapes: C channels (ears), S samples, J spectra, F mel bins, K chunks, D values = C * hops * F.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from mmpredict.schema import Clip, Modality, StreamSpec, Tokens

POWER_FLOOR = 1e-10  # of full scale: far below any recording, so that only digital silence is flat
LOUDEST = 0.5  # natural log of mel power: no sound is louder than full scale


@lru_cache(maxsize=8)
def _mel_filters_FB(sample_rate: int, num_fft: int, num_mels: int) -> Tensor:
    """(B, F) triangular filters from B frequency bins to F mel bins."""
    from torchaudio.functional import melscale_fbanks

    return melscale_fbanks(num_fft // 2 + 1, 20.0, sample_rate / 2, num_mels, sample_rate)


@dataclass(frozen=True)
class MelChunks:
    """Log-mel power of short chunks, both ears together.

    Args:
        sample_rate: Hz; clips are read at this rate.
        channels: 1 (mono) or 2 (left, right).
        chunk_s: seconds per chunk.
        hops: spectra per chunk.
        num_mels: mel bins per spectrum and channel.
    """

    sample_rate: int = 16000
    channels: int = 2
    chunk_s: float = 0.04
    hops: int = 4
    num_mels: int = 64

    def __post_init__(self) -> None:
        if self.channels not in (1, 2):
            raise ValueError(f"audio.channels={self.channels}; take 1 (mono) or 2 (both ears)")
        samples = self.sample_rate * self.chunk_s
        if (
            samples < self.hops
            or abs(samples - round(samples)) > 1e-6
            or round(samples) % self.hops
        ):
            raise ValueError(
                f"audio.chunk_s={self.chunk_s} at {self.sample_rate} Hz is {samples:g} samples, "
                f"not a multiple of hops={self.hops}; change one of the three"
            )

    @property
    def chunk_samples(self) -> int:
        return round(self.sample_rate * self.chunk_s)

    @property
    def hop(self) -> int:
        """Samples between spectra."""
        return self.chunk_samples // self.hops

    @property
    def num_fft(self) -> int:
        """Window in samples: the power of two next above three hops (32 ms at the defaults)."""
        return 1 << (3 * self.hop - 1).bit_length()

    @property
    def spec(self) -> StreamSpec:
        width = self.channels * self.hops * self.num_mels
        return StreamSpec(
            modality=Modality.AUDIO,
            name="audio",
            width=width,
            period_s=self.chunk_s,
            fills_period=True,
            dtype=torch.float16,
            value_range=(math.log(POWER_FLOOR), LOUDEST),
        )

    @property
    def groups_D(self) -> Tensor:
        """Values that share mean and standard deviation: those of one mel bin."""
        return torch.arange(self.num_mels).repeat(self.channels * self.hops)

    def encode(self, clip: Clip) -> Tokens | None:
        """float16 natural logs of mel power; a remainder shorter than a chunk is left out."""
        if clip.waveform_CS is None or clip.waveform_CS.shape[1] < self.chunk_samples:
            return None
        got = (clip.waveform_CS.shape[0], clip.sample_rate)
        if got != (self.channels, self.sample_rate):
            raise ValueError(
                f"{clip.name}: sound has {got[0]} channels at {got[1]} Hz, the model takes "
                f"{self.channels} at {self.sample_rate} Hz; read the clip at these"
            )
        num_chunks = clip.waveform_CS.shape[1] // self.chunk_samples
        log_mel_CJF = self.log_mel(clip.waveform_CS[:, : num_chunks * self.chunk_samples])
        chunks = log_mel_CJF.unflatten(1, (num_chunks, self.hops)).transpose(0, 1)
        end_s = clip.waveform_start_s + self.chunk_s * torch.arange(1, num_chunks + 1).double()
        contents = chunks.reshape(num_chunks, 1, -1).half()
        return Tokens(modality=Modality.AUDIO, contents=contents, end_s=end_s)

    def log_mel(self, waveform_CS: Tensor) -> Tensor:
        """(C, J, F) natural log of mel power, floored; J = S / hop."""
        window = torch.hann_window(self.num_fft)
        padded = torch.nn.functional.pad(waveform_CS, (self.num_fft - self.hop, 0))
        stft = torch.stft(
            padded, self.num_fft, self.hop, window=window, center=False, return_complex=True
        )
        power_CBJ = stft.abs().square() / window.sum().square()
        filters = _mel_filters_FB(self.sample_rate, self.num_fft, self.num_mels)
        return (power_CBJ.transpose(1, 2) @ filters).clamp(min=POWER_FLOOR).log()

    def decode(self, tokens: Tokens) -> Clip:
        """A waveform with these spectra, phases by Griffin-Lim (Griffin & Lim 1984). Chunks that
        are missing between the first and the last become silence."""
        # Counted from the first chunk: sound may start at any time, also half a chunk off the grid.
        chunk_index = torch.round((tokens.end_s - tokens.end_s[0]) / self.chunk_s).long()
        num_chunks = int(chunk_index[-1]) + 1
        silence = torch.tensor(POWER_FLOOR).log().item()
        log_mel = torch.full((num_chunks, self.spec.width), silence)
        log_mel[chunk_index] = tokens.contents.flatten(1).float()
        log_mel_CJF = (
            log_mel.unflatten(1, (self.channels, self.hops, self.num_mels))
            .transpose(0, 1)
            .flatten(1, 2)
        )
        waveform = self.waveform_from_log_mel(log_mel_CJF)
        start_s = float(tokens.end_s[0]) - self.chunk_s
        return Clip(
            waveform_CS=waveform, sample_rate=self.sample_rate, waveform_start_s=max(0.0, start_s)
        )

    def waveform_from_log_mel(self, log_mel_CJF: Tensor, iterations: int = 32) -> Tensor:
        """Undo `log_mel` up to phase: (C, J * hop) samples, the same on every call."""
        from torchaudio.functional import griffinlim

        filters = _mel_filters_FB(self.sample_rate, self.num_fft, self.num_mels)
        power_CJF = (log_mel_CJF.float().exp() - POWER_FLOOR).clamp(min=0)
        power_CBJ = (power_CJF @ torch.linalg.pinv(filters)).clamp(min=0).transpose(1, 2)
        window = torch.hann_window(self.num_fft)
        # griffinlim centres its frames: spectrum j is centred num_fft / 2 before its end, so the
        # result starts (num_fft / 2 - hop) samples early and stops num_fft / 2 short: pad, cut.
        tail = -(-self.num_fft // (2 * self.hop)) + 1
        magnitude = torch.nn.functional.pad(power_CBJ, (0, tail)).sqrt() * window.sum()
        waveform = griffinlim(
            magnitude,
            window,
            self.num_fft,
            self.hop,
            self.num_fft,
            1.0,
            iterations,
            0.99,
            None,
            False,
        )
        early, length = self.num_fft // 2 - self.hop, log_mel_CJF.shape[1] * self.hop
        return waveform[:, early : early + length].clamp(-1, 1)
