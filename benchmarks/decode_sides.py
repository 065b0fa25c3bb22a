"""What decode.py measures: clips whose every frame carries its number, and the rivals that read
them.

In: paths. Out: clips on disk; frames and sound as each rival gives them. The rivals are written
plainly, as a careful user of the library would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray
from torch import Tensor

from mmpredict.media import read_clip

FPS = 30
RATE = 16_000
CRF = 23
_BITS = 11  # of a burnt number
_SQUARE = 22 / 256  # its width, of the picture's
_STRIP = 24 / 256  # its height, of the picture's
_SWING_S = 0.1  # sound decoded before a window, for its decoder to swing in
_EXACT = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND


def burn(picture_HWC: NDArray[np.uint8], number: int) -> None:
    """Write a number into a picture as light and dark squares along its top."""
    height, width = picture_HWC.shape[:2]
    for bit in range(_BITS):
        left, right = round(bit * _SQUARE * width), round((bit + 1) * _SQUARE * width)
        level = 235 if number >> bit & 1 else 16
        picture_HWC[: round(_STRIP * height), left:right] = level


def burnt_numbers(frames_TCHW: Tensor) -> list[int]:
    """The numbers in frames of any size."""
    height, width = frames_TCHW.shape[2:]
    row = int(_STRIP * height / 2)
    columns = [int((bit + 0.5) * _SQUARE * width) for bit in range(_BITS)]
    light = frames_TCHW[:, :, row, columns].float().mean(1) > 128
    return [int((bits * 2 ** torch.arange(_BITS)).sum()) for bits in light]


def drawn(frames: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """256x256 pictures: a coloured texture that drifts, a square that swings, the number."""
    chance = np.random.default_rng(seed)
    y, x = np.mgrid[:256, :256]
    waves = [128 + 60 * np.sin(x / (9 + k) + y / (13 + 2 * k)) for k in range(3)]
    texture = np.stack(waves, -1) + chance.normal(0, 12, (256, 256, 3))
    texture = np.clip(texture, 0, 255).astype(np.uint8)
    for number in range(frames):
        picture = np.roll(texture, (2 * number, 3 * number), (0, 1))
        row, column = int(128 + 90 * np.cos(number / 17)), int(128 + 90 * np.sin(number / 20))
        picture[row - 25 : row + 25, column - 25 : column + 25] = (220, 40, 60)
        burn(picture, number)
        yield picture


def filmed(source: Path, frames: int, size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """A real clip played to and fro, so that no cut adds a key frame; each picture numbered."""
    pictures = read_clip(source, size=size, sound=False).frames_TCHW.permute(0, 2, 3, 1).numpy()
    turns = [*range(len(pictures)), *range(len(pictures) - 2, 0, -1)]
    for number in range(frames):
        picture = pictures[turns[number % len(turns)]].copy()
        burn(picture, number)
        yield picture


def tone(seconds: float, seed: int) -> NDArray[np.float32]:
    """A chirp in noise that comes and goes."""
    time_s = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).normal(size=len(time_s)) * (np.sin(3 * time_s) > 0)
    return (0.3 * np.sin(2 * np.pi * (300 + 20 * time_s) * time_s) + 0.1 * noise).astype(np.float32)


def encode(
    path: Path,
    pictures: Iterable[NDArray[np.uint8]],
    waveform_S: NDArray[np.float32],
    *,
    fixed_gop: bool = False,
) -> Path:
    """Pictures and mono sound to an mp4: H.264 with x264's default GOP of 250, AAC.

    Args:
        fixed_gop: key frames every 250 frames and nowhere else; else x264 adds some at cuts.
    """
    options = {"crf": str(CRF), "threads": "1"} | ({"sc_threshold": "0"} if fixed_gop else {})
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options=options)
        # Without noise substitution a decoder gives the same samples wherever it starts.
        audio = container.add_stream("aac", rate=RATE, options={"aac_pns": "0"})
        audio.layout = "mono"
        done = 0
        for number, picture in enumerate(pictures):
            if number == 0:
                video.height, video.width, video.pix_fmt = *picture.shape[:2], "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(video.encode(frame))
            until = (number + 1) * RATE // FPS
            while done < until:
                part = np.ascontiguousarray(waveform_S[None, done : done + 1024])
                sound = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
                sound.sample_rate, sound.pts, sound.time_base = RATE, done, Fraction(1, RATE)
                container.mux(audio.encode(sound))
                done += 1024
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return path


def exact_frames(path: Path) -> NDArray[np.float64]:
    """Frames at a quarter of their size as they should be, (T, C, H, W): every pixel converted at
    full size with full chroma, then the plain mean of 4x4 squares."""
    with av.open(str(path)) as container:
        full = [
            frame.reformat(format="rgb24", interpolation=_EXACT).to_ndarray()
            for frame in container.decode(video=0)
        ]
    height, width = full[0].shape[:2]
    boxes = np.stack(full).reshape(len(full), height // 4, 4, width // 4, 4, 3)
    return boxes.mean((2, 4)).transpose(0, 3, 1, 2)


def opened(path: Path) -> Any:
    """A container whose decoders use one thread."""
    container = av.open(str(path))
    for stream in (container.streams.video[0], container.streams.audio[0]):
        stream.codec_context.thread_type, stream.codec_context.thread_count = "SLICE", 1
    return container


def decode_only(path: Path) -> int:
    """Demux and decode video and sound, and drop what comes; returns how many frames came."""
    count = 0
    with opened(path) as container:
        for packet in container.demux(container.streams.video[0], container.streams.audio[0]):
            count += len(packet.decode())
    return count


class PlainSeeker:
    """Reads windows anywhere in files: containers stay open, each window is a seek.

    Args:
        frames: of a window.
        size: of the frames it gives.
    """

    def __init__(self, frames: int, size: tuple[int, int]) -> None:
        self.frames, self.size = frames, size
        self.containers: dict[Path, Any] = {}
        self.reformatter = VideoReformatter()

    def read(self, path: Path, first: int) -> tuple[Tensor, Tensor]:
        """Frames (T, C, H, W) from number `first` on, and the sound of the same time, (S,)."""
        container = self.containers.get(path)
        if container is None:
            container = self.containers[path] = opened(path)
        video, audio = container.streams.video[0], container.streams.audio[0]
        start_s, end_s = first / FPS, (first + self.frames) / FPS
        container.seek(round(start_s * 1_000_000))
        pictures: list[NDArray[np.uint8]] = []
        sounds: list[Any] = []
        heard_s = 0.0
        for packet in container.demux(video, audio):
            if packet.stream is video and len(pictures) < self.frames:
                for frame in packet.decode():
                    if frame.time >= start_s - 0.5 / FPS and len(pictures) < self.frames:
                        pictures.append(self._shaped(frame))
            elif packet.pts is not None and packet.stream is audio and heard_s < end_s:
                heard_s = float((packet.pts + packet.duration) * packet.time_base)
                if heard_s > start_s - _SWING_S:
                    sounds += packet.decode()
                    heard_s = sounds[-1].time + sounds[-1].samples / RATE if sounds else 0.0
            if len(pictures) == self.frames and heard_s >= end_s:
                break
        frames_TCHW = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
        return frames_TCHW, self._cut(sounds, start_s)

    def _shaped(self, frame: Any) -> NDArray[np.uint8]:
        height, width = self.size
        small = self.reformatter.reformat(
            frame, width, height, "rgb24", interpolation=Interpolation.AREA, threads=1
        )
        return small.to_ndarray()

    def _cut(self, sounds: list[Any], start_s: float) -> Tensor:
        waveform_S = np.concatenate([sound.to_ndarray()[0] for sound in sounds])
        at = round(start_s * RATE) - round(sounds[0].time * RATE)
        return torch.from_numpy(waveform_S[at : at + round(self.frames * RATE / FPS)])


def torchcodec_reader(size: tuple[int, int]) -> Callable[[Path], tuple[Tensor, Tensor]] | str:
    """A reader of whole files through torchcodec, as (frames, waveform); or why there is none."""
    try:
        from torchcodec.decoders import AudioDecoder, VideoDecoder
        from torchcodec.transforms import Resize
    except Exception as error:  # RuntimeError where it finds no FFmpeg
        lines = str(error).strip().splitlines()
        return f"torchcodec cannot be used here: {lines[0] if lines else type(error).__name__}"

    def read(path: Path) -> tuple[Tensor, Tensor]:
        # Neither mode is faster on whole files; "approximate" spares it the scan.
        decoder = VideoDecoder(
            path, transforms=[Resize(size)], num_ffmpeg_threads=1, seek_mode="approximate"
        )
        frames = decoder.get_frames_in_range(0, len(decoder)).data
        return frames, AudioDecoder(path).get_all_samples().data

    return read
