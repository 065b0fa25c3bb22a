"""A prompt and what follows it become one clip. In: a Clip, and tokens of both. Out: a Clip.

Shapes: C channels and S samples of a waveform, T vectors of D values.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mmpredict.schema import Clip, Modality, Series, Tokens
from mmpredict.tokens import Codecs, MelChunks

SEAM_S = 0.005  # the jump between recorded and generated sound is spread over this long


def joined(
    codecs: Codecs, prompt: Clip, encoded: dict[int, Tokens], made: dict[int, Tokens], inside: bool
) -> Clip:
    """The prompt and its continuation as one clip.

    Args:
        codecs: decode what was made.
        prompt: as it came.
        encoded, made: streams of the prompt and of the continuation, by modality.
        inside: the last piece of text of the prompt goes on.
    """
    clip = prompt
    if Modality.VIDEO in made:
        new = codecs.video.decode(made[Modality.VIDEO])
        frames, times_s = new.frames_TCHW, new.times_s
        if Modality.VIDEO in encoded:
            frames = torch.cat([prompt.frames_TCHW, frames])
            times_s = torch.cat([prompt.times_s.double(), times_s])
        clip = replace(clip, frames_TCHW=frames, times_s=times_s)
    if Modality.AUDIO in made:
        clip = _with_sound(codecs.audio, clip, encoded.get(Modality.AUDIO), made[Modality.AUDIO])
    for name, codec in codecs.series.items():
        if codec.modality in made:
            new = codec.decode(made[codec.modality]).series[name]
            clip = replace(clip, series={**clip.series, name: _longer(clip.series.get(name), new)})
    if Modality.TEXT in made:
        new, kept = made[Modality.TEXT], prompt.texts
        if inside:  # the last piece is open: it is decoded again together with what follows it
            last_ids, _ = codecs.text.ids_of(prompt.texts[-1].text)
            old = encoded[Modality.TEXT]
            begin = len(old.contents) - len(last_ids)
            ids = torch.cat([old.contents[begin:], new.contents])
            new = replace(new, contents=ids, end_s=torch.cat([old.end_s[begin:], new.end_s]))
            kept = kept[:-1]
        said = [piece for piece in codecs.text.decode(new).texts if piece.text]
        clip = replace(clip, texts=(*kept, *said))
    return clip


def _longer(before: Series | None, made: Series) -> Series:
    """A series and what follows it."""
    if before is None or not len(before.times_s):
        return made
    values_TD = torch.cat([before.values_TD.float(), made.values_TD])
    return Series(values_TD, torch.cat([before.times_s.double(), made.times_s]))


def _with_sound(audio: MelChunks, clip: Clip, before: Tokens | None, made: Tokens) -> Clip:
    """Append the waveform of generated chunks to the clip's own."""
    # A spectrum looks back over its window, so the sound begins with some chunks of the prompt.
    look_back = -(-audio.num_fft // audio.chunk_samples) + 1
    lead = made.contents[:0] if before is None else before.contents[-look_back:]
    contents = torch.cat([lead, made.contents])
    end_s = audio.chunk_s * torch.arange(1, len(contents) + 1).double()
    decoded = audio.decode(Tokens(Modality.AUDIO, contents, end_s)).waveform_CS
    new_CS = decoded[:, len(lead) * audio.chunk_samples :]
    if before is None:
        start_s = float(made.end_s[0]) - audio.chunk_s
        return replace(
            clip, waveform_CS=new_CS, sample_rate=audio.sample_rate, waveform_start_s=start_s
        )
    old_CS = clip.waveform_CS[:, : len(before.end_s) * audio.chunk_samples]
    new_CS = _without_click(old_CS, new_CS, round(SEAM_S * audio.sample_rate))
    return replace(clip, waveform_CS=torch.cat([old_CS, new_CS], dim=1))


def _without_click(old_CS: Tensor, new_CS: Tensor, seam: int) -> Tensor:
    """`new_CS`, but starting where `old_CS` ends; itself again after `seam` samples."""
    length = min(new_CS.shape[1], max(1, seam))
    jump_C1 = old_CS[:, -1:] - new_CS[:, :1]
    seam_CS = new_CS[:, :length] + jump_C1 * torch.linspace(1, 0, length)
    return torch.cat([seam_CS, new_CS[:, length:]], dim=1).clamp(-1, 1)
