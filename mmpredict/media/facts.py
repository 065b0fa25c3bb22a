"""What was found in a media file: plain figures, times in seconds on the file's clock."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Damage:
    """A place that cannot be decoded."""

    kind: str
    at_s: float
    reason: str


@dataclass(frozen=True)
class VideoFacts:
    """A video stream; times in seconds on the file's clock.

    Args:
        codec, pixel_format: FFmpeg's names.
        width, height: as shown, after rotation, in stored pixels.
        rotation: degrees counter-clockwise that the stored picture is turned by.
        mirrored: it is mirrored left to right before that.
        pixel_aspect: width over height of a pixel.
        interlaced: as the first frame says.
        start_s, end_s: by the stamps of its packets.
        header_s: length that the header claims; None if it is silent.
        header_frames: as the header counts them, 0 if it does not.
        packets: frames in the file, decoded or not, as far as it was looked at.
        fps: average over the stamps; 0 for fewer than two frames.
        steps_off: steps between frames that differ from the usual one by over 2 ms and a tenth.
        step_s: (shortest, usual, longest) step.
        key_frames: packets from which decoding can start.
        gop: (usual, longest) distance of key frames, in frames.
        gop_s: the longest in seconds.
        decoded_frames, decoded_end_s: None unless all was decoded.
    """

    codec: str
    pixel_format: str
    width: int
    height: int
    rotation: int
    mirrored: bool
    pixel_aspect: float
    interlaced: bool
    start_s: float
    end_s: float
    header_s: float | None
    header_frames: int
    packets: int
    fps: float
    steps_off: int
    step_s: tuple[float, float, float]
    key_frames: int
    gop: tuple[int, int]
    gop_s: float
    decoded_frames: int | None = None
    decoded_end_s: float | None = None


@dataclass(frozen=True)
class AudioFacts:
    """A sound stream; times in seconds on the file's clock.

    Args:
        codec: FFmpeg's name.
        sample_rate, channels, layout: as decoded; as in the header if nothing could be.
        start_s, end_s, header_s, packets: as of VideoFacts.
        heard_s: seconds of sound that were decoded.
        silent_share: of chunks of 40 ms whose loudest channel is below -60 dB; None if none heard.
        peak_db: loudest sample against full scale; -inf for digital silence.
        decoded_end_s: None unless all was decoded.
    """

    codec: str
    sample_rate: int
    channels: int
    layout: str
    start_s: float
    end_s: float
    header_s: float | None
    packets: int
    heard_s: float
    silent_share: float | None
    peak_db: float
    decoded_end_s: float | None = None


@dataclass(frozen=True)
class FileFacts:
    """What was found in a file.

    Args:
        container: FFmpeg's name of the format.
        bytes: size.
        header_s: duration that the header claims, None if it claims none.
        video, audio: the two streams that are read.
        others: what else is in it and not read, one line each.
        damage: what cannot be decoded, in the order found.
        whole: all packets were looked at, not only the first and last seconds.
        decoded: frames and sound were decoded from start to end.
        decode_cpu_s: processor time that decoding took.
    """

    container: str
    bytes: int
    header_s: float | None
    video: VideoFacts | None
    audio: AudioFacts | None
    others: tuple[str, ...]
    damage: tuple[Damage, ...]
    whole: bool
    decoded: bool
    decode_cpu_s: float

    @property
    def sync_s(self) -> float | None:
        """How much later the sound starts than the picture; None without either."""
        if self.video is None or self.audio is None:
            return None
        return self.audio.start_s - self.video.start_s

    @property
    def end_s(self) -> float:
        """Where the later of its streams ends, by what was decoded or else by stamps."""
        streams = [s for s in (self.video, self.audio) if s is not None]
        ends = [s.end_s if s.decoded_end_s is None else s.decoded_end_s for s in streams]
        return max(ends, default=0.0)
