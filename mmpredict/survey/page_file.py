"""The survey of one file as lines of text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from mmpredict.media.examine import HEAD_S, LISTEN_S, TAIL_S
from mmpredict.media.facts import AudioFacts, FileFacts, VideoFacts
from mmpredict.survey.expected import Plan
from mmpredict.survey.oddities import LONG_GOP
from mmpredict.survey.page_rows import SHOWN, listed, many, row, size
from mmpredict.survey.source import FileSurvey, TextFacts


def file_page(survey: FileSurvey, plan: Plan, *, show_all: bool = False) -> list[str]:
    """What one file holds, and what a run would make of it."""
    facts = survey.facts
    head = f"{survey.path}: {size(survey.bytes)}"
    if facts is None:
        return [head, *row("skipped", f"the whole file: {survey.refused}")]
    lines = [f"{head}, {container(survey)}", *row("looked at", looked_at(facts))]
    lines += _streams(survey, facts)
    lines += row("text", text_beside(survey))
    lines += gives(survey.documents, survey.tokens, plan)
    for thing in survey.odd:
        lines += row("note", f"{thing.kind}: {thing.detail}")
    for damage in facts.damage if show_all else facts.damage[:SHOWN]:
        lines += row("damage", damage.reason)
    if survey.refused is not None:
        return [*lines, *row("skipped", f"the whole file: {survey.refused}")]
    lost = [(f"{lost.start_s:g} to {lost.end_s:g} s", lost.reason) for lost in survey.lost]
    if lost and not facts.decoded:
        lines += row("note", "between the first and the last document --decode may find more")
    return [*lines, *listed("skipped", "document", lost, show_all)]


def _streams(survey: FileSurvey, facts: FileFacts) -> list[str]:
    """Picture and sound, one after the other, and how they stand to each other."""
    video, audio = facts.video, facts.audio
    lines = row("picture", picture(video) if video is not None else "none")
    if video is not None and survey.kind != "image":
        lines += row("frame rate", frame_rate(video))
        lines += row("key frames", key_frames(video))
    lines += row("sound", f"{audio.codec} {sound(audio)}" if audio is not None else "none")
    if audio is not None:
        lines += row("loudness", loudness(audio))
    for other in facts.others:
        lines += row("besides", other)
    if survey.kind != "image":
        lines += row("starts", starts(facts))
        lines += row("durations", durations(facts))
    return lines


def text_page(facts: TextFacts, plan: Plan) -> list[str]:
    """What a text file holds."""
    lines = [f"{facts.path}: text, {size(Path(facts.path).stat().st_size)}"]
    if facts.error is not None:
        return [*lines, *row("skipped", f"the whole file: {facts.error}")]
    lines += row("holds", f"{many(facts.pieces, 'piece')}, {many(facts.characters, 'character')}")
    if facts.first_s is not None and facts.last_s is not None:
        lines += row("times", f"{facts.timed:,} timed, {facts.first_s:.2f} to {facts.last_s:.2f} s")
    else:
        lines += row("times", "none")
    return [*lines, *row("gives", f"{facts.tokens:,} tokens{unfitted(plan)} with {plan.name}")]


def container(survey: FileSurvey) -> str:
    """FFmpeg names a family of formats alike; the file's own suffix says which it is."""
    assert survey.facts is not None
    family, suffix = survey.facts.container.split(","), Path(survey.path).suffix[1:].lower()
    return suffix if suffix in family else family[0]


def looked_at(facts: FileFacts) -> str:
    """What was read of the file and what was decoded."""
    if facts.decoded:
        return "everything, decoded from start to end"
    stamps = "stamps of all packets"
    if not facts.whole:
        stamps = f"stamps of the first {HEAD_S:.0f} s and of the last {TAIL_S:.0f} s (a large file)"
    heard = ""
    if facts.audio is not None:
        is_all = facts.audio.end_s <= LISTEN_S and facts.whole
        heard = ", all sound" if is_all else f", the first {facts.audio.heard_s:.0f} s of sound"
    return f"{stamps}{heard}, the first and the last document (--decode decodes everything)"


def picture(video: VideoFacts) -> str:
    turned = f", turned by {video.rotation} degrees for showing" if video.rotation else ""
    mirrored = ", stored mirrored" if video.mirrored else ""
    shape = f"{video.codec} {video.width}x{video.height} {video.pixel_format}"
    return f"{shape.rstrip()}{turned}{mirrored}"


def frame_rate(video: VideoFacts) -> str:
    frames = many(video.packets, "frame")
    if video.decoded_frames is not None:
        frames += f", {video.decoded_frames:,} decoded"
    if not video.fps:
        return frames
    if not video.steps_off:
        return f"{video.fps:.4g} a second, constant; {frames}"
    shortest, usual, longest = (1000 * step for step in video.step_s)
    return (
        f"{video.fps:.4g} a second on average, variable: {video.steps_off:,} of "
        f"{video.packets - 1:,} steps differ from the usual {usual:.1f} ms "
        f"({shortest:.1f} to {longest:.1f} ms); {frames}"
    )


def key_frames(video: VideoFacts) -> str:
    if video.packets == video.key_frames:
        return "every frame"
    words = (
        f"{video.key_frames:,}, usually {video.gop[0]} frames apart, at most {video.gop[1]} "
        f"({video.gop_s:.1f} s)"
    )
    if video.key_frames < 2:
        words = f"{video.key_frames} in {video.gop[1]} frames ({video.gop_s:.1f} s)"
    slow = "; random access is slow, `mmpredict prepare --encode` cures it"
    return words + (slow if video.gop[1] >= LONG_GOP else "")


def sound(audio: AudioFacts) -> str:
    channels = f" ({audio.channels} channels)" if audio.channels > 2 else ""
    return f"{audio.sample_rate} Hz {audio.layout}{channels}"


def loudness(audio: AudioFacts) -> str:
    if audio.silent_share is None:
        return "not heard: nothing could be decoded"
    if math.isinf(audio.peak_db):
        return f"silent: all {audio.heard_s:.1f} s heard are digital silence"
    share = f"{100 * audio.silent_share:.3g} % of {audio.heard_s:.1f} s is silent"
    return f"{share} (40 ms chunks below -60 dB), peak {audio.peak_db:.1f} dB"


def starts(facts: FileFacts) -> str:
    """Starts of both streams, and what this means."""
    video, audio, sync_s = facts.video, facts.audio, facts.sync_s
    if video is None or audio is None or sync_s is None:
        only = video or audio
        return f"{only.start_s:.3f} s" if only is not None else "unknown"
    words = f"picture {video.start_s:.3f} s, sound {audio.start_s:.3f} s"
    if abs(sync_s) < 0.0005:
        return f"{words}: together"
    later = "sound" if sync_s > 0 else "picture"
    return f"{words}: {later} comes {abs(sync_s) * 1000:.0f} ms later, and so it is read"


def durations(facts: FileFacts) -> str:
    """Header against streams against what was decoded."""
    said = "says nothing" if facts.header_s is None else f"{facts.header_s:.3f} s"
    parts = [f"header {said}"]
    for name, stream in (("picture", facts.video), ("sound", facts.audio)):
        if stream is not None:
            words = f"{name} ends at {stream.end_s:.3f} s"
            if stream.decoded_end_s is not None:
                words += f" (decoded {stream.decoded_end_s:.3f} s)"
            parts.append(words)
    return ", ".join(parts)


def text_beside(survey: FileSurvey) -> str:
    text = survey.text
    if text is None:
        stem = Path(survey.path).stem
        return f"none beside it (looked for {stem}.srt .vtt .json .jsonl .txt)"
    name = Path(text.path).name
    if text.path == survey.path:
        name = "its own subtitles"
    if text.error is not None:
        return f"{name}: {text.error}"
    words = f"{name}: {many(text.pieces, 'piece')}, {many(text.characters, 'character')}"
    if survey.kind == "image":
        return words
    if text.first_s is None or text.last_s is None:
        return f"{words}, untimed: spread over the file by the length of its words"
    times = f"{text.first_s:.2f} to {text.last_s:.2f} s of {survey.span_s[1]:.2f} s"
    return f"{words}, {text.timed:,} timed from {times}"


def gives(documents: int, tokens: Mapping[str, int], plan: Plan) -> list[str]:
    """Documents, and positions by stream."""
    counts = ", ".join(
        f"{name} {count:,}{unfitted(plan) if name == 'text' else ''}"
        for name, count in sorted(tokens.items())
    )
    whole = math.isinf(plan.clip_seconds)
    length = "a whole file each" if whole else f"of up to {plan.clip_seconds:g} s"
    cut = many(documents, f"document {length}")
    return [*row("gives", f"{cut} with {plan.name}"), *row("tokens", counts or "none")]


def unfitted(plan: Plan) -> str:
    """What a count of text tokens means where the vocabulary is trained by the run."""
    text = plan.codecs.text
    is_ready = text is None or text.is_fitted
    return "" if is_ready else " (bytes: the run trains the vocabulary)"
