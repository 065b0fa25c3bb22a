"""What is unusual about a media file and a person should know. In: FileFacts. Out: Odd things, each
of a kind that can be counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mmpredict.media.facts import AudioFacts, FileFacts, VideoFacts
from mmpredict.tokens import MelChunks, Patches

LATE_S = 0.05  # between the starts of picture and sound
APART_S = 0.5  # between the ends of picture and sound
WRONG_S, WRONG_SHARE = 0.5, 0.02  # of the header's duration
LONG_GOP = 48  # frames from key frame to key frame from which seeking is slow
SHORTEST_S = 0.25  # what is shorter needs no duration in its header


@dataclass(frozen=True)
class Odd:
    """Something that a person should know: its kind, for counting, and the numbers."""

    kind: str
    detail: str


def odd_things(
    facts: FileFacts, video: Patches | None = None, audio: MelChunks | None = None
) -> Iterator[Odd]:
    """Everything unusual about a file.

    Args:
        facts: as measured.
        video, audio: the encoders that will read it, or None.
    """
    yield from _odd_times(facts)
    if facts.video is not None:
        yield from _odd_picture(facts.video, video)
    if facts.audio is not None:
        yield from _odd_sound(facts.audio, audio)


def _odd_sound(sound: AudioFacts, codec: MelChunks | None) -> Iterator[Odd]:
    if sound.silent_share == 1.0:
        yield Odd("silent sound track", f"all {sound.heard_s:.1f} s that were decoded")
    if sound.channels > 2:
        yield Odd("mixed down", f"{sound.layout} to {codec.channels if codec else 2} channels")
    if codec is not None and sound.sample_rate < codec.sample_rate:
        above = f"{sound.sample_rate} Hz: nothing sounds above {sound.sample_rate // 2} Hz"
        yield Odd("sample rate below the recipe's", above)


def _odd_times(facts: FileFacts) -> Iterator[Odd]:
    video, audio, sync_s = facts.video, facts.audio, facts.sync_s
    if sync_s is not None and abs(sync_s) > LATE_S:
        late = "late sound" if sync_s > 0 else "late picture"
        yield Odd(late, f"starts {abs(sync_s) * 1000:.0f} ms after the other")
    if video is not None and audio is not None and abs(video.end_s - audio.end_s) > APART_S:
        ends = f"picture {video.end_s:.2f} s, sound {audio.end_s:.2f} s"
        yield Odd("picture and sound end apart", ends)
    header_s, end_s = facts.header_s, facts.end_s
    if header_s is not None and abs(header_s - end_s) > max(WRONG_S, WRONG_SHARE * header_s):
        yield Odd("wrong duration in header", f"claims {header_s:.2f} s, ends at {end_s:.2f} s")
    if header_s is None and end_s > SHORTEST_S:
        yield Odd("no duration in header", f"ends at {end_s:.2f} s")


def _odd_picture(video: VideoFacts, codec: Patches | None) -> Iterator[Odd]:
    if video.steps_off:
        shortest, _, longest = (1000 * step for step in video.step_s)
        off = f"{video.steps_off} of {video.packets - 1} steps"
        yield Odd("variable frame rate", f"{off} off, {shortest:.0f} to {longest:.0f} ms")
    if video.rotation or video.mirrored:
        mirrored = "mirrored, " if video.mirrored else ""
        yield Odd("rotated", f"{mirrored}{video.rotation} degrees; shown upright when read")
    if video.gop[1] >= LONG_GOP:
        yield Odd("long GOP", f"{video.gop[1]} frames ({video.gop_s:.1f} s)")
    if video.interlaced:
        yield Odd("interlaced", "lines of two moments in one frame; nothing is done about it")
    if abs(video.pixel_aspect - 1) > 0.01:
        yield Odd("oblong pixels", f"{video.pixel_aspect:.3f} wide; made square when read")
    if codec is not None:
        if 0 < video.fps < 0.99 * codec.fps:
            yield Odd("frame rate below the recipe's", f"{video.fps:.2f} fps: frames are repeated")
        height, width = codec.height_width
        if video.height < height or video.width < width:
            yield Odd("smaller than the recipe's size", f"{video.width}x{video.height}: enlarged")
