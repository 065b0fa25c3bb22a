"""The survey of shards as lines of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmpredict.shards.settings import Settings
from mmpredict.shards.verify import Damage
from mmpredict.survey.page_rows import SHOWN, counted, many, names, row, size, span
from mmpredict.survey.stored import BY_HASH, ShardsSurvey, TarSurvey

# Settings that a recipe decides; those of the command have no effect then.
OF_A_RECIPE = ("size", "patch", "fps", "sample_rate", "channels", "clip_seconds", "text")


def shards_page(survey: ShardsSurvey, *, show_all: bool = False) -> list[str]:
    """What a folder of shards, or one of them, holds."""
    what = f"{survey.root}/{survey.shard}" if survey.shard else survey.root
    lines = [
        f"{what}: {many(len(survey.shards), 'shard')}, {size(survey.bytes)}, "
        f"{many(survey.samples, 'sample')} in {many(survey.members, 'member')}, "
        f"from {many(survey.sources, 'source')}"
    ]
    lines += row("form", counted(survey.forms))
    lines += row("length", span(survey.seconds))
    lines += row("streams", counted(survey.streams) or "none")
    if survey.pictures:
        lines += row("pictures", f"{counted(survey.pictures)}; {survey.frames:,} frames")
    if survey.sounds:
        lines += row("sounds", f"{counted(survey.sounds)}; {span(survey.sound_s)}")
    if survey.characters:
        lines += row("text", many(survey.characters, "character"))
    tokens = ", ".join(f"{name} {count:,}" for name, count in sorted(survey.tokens.items()))
    lines += row("tokens", tokens or "not counted")
    for name, codec in survey.codecs.items():
        if codec and tokens:
            lines += row("", f"counted for {name} of {_words(codec)}")
    splits = counted(survey.splits)
    if list(survey.splits) == [BY_HASH]:
        splits = "by the hash of each source, decided by the run"
    lines += row("splits", splits)
    lines += row("settings", settings(survey.settings) or "none")
    lines += row("fingerprint", f"{survey.fingerprint} (equal exactly if all content is)")
    if not survey.shard:
        lines += _skipped(survey, show_all)
    return lines


def _skipped(survey: ShardsSurvey, show_all: bool) -> list[str]:
    if not survey.skipped:
        return row("skipped", "nothing")
    found = [(path, reason) for path, _, reason in survey.skipped]
    head = row("skipped", f"{many(len(found), 'file')}: {counted(survey.skipped_kinds)}")
    return [*head, *names(found, show_all)]


def settings(given: Mapping[str, Any]) -> str:
    """What decides the content, and of the limits those that were changed."""
    usual = Settings().plain()
    kept = {
        name: value
        for name, value in given.items()
        if not (name.startswith(("max_", "shard_")) and value == usual.get(name))
        and not (name in OF_A_RECIPE and given.get("recipe"))
    }
    return _words(kept)


def _words(settings: Mapping[str, Any]) -> str:
    """name value, name value; without what was not set."""
    words = []
    for name, value in settings.items():
        if value in ("", None, False):
            continue
        is_list = isinstance(value, list | tuple)
        words.append(f"{name} {'x'.join(map(str, value)) if is_list else value}")
    return ", ".join(words)


def tar_page(survey: TarSurvey) -> list[str]:
    """What a tar without an index holds."""
    lines = [
        f"{survey.path}: tar without an index, {size(survey.bytes)}, "
        f"{many(survey.samples, 'sample')} in {many(survey.members, 'member')}"
    ]
    for suffix, (count, total) in sorted(survey.suffixes.items()):
        lines += row(suffix or "no suffix", f"{many(count, 'member')}, {size(total)}")
    lines += row("begins", ", ".join(survey.first))
    return [*lines, *row("read it", "with data.class_path datamodules.WebDataset")]


def verify_page(survey: ShardsSurvey, damage: Sequence[Damage], *, show_all: bool) -> list[str]:
    """What `verify` found."""
    if not damage:
        return row("verified", f"all {survey.members:,} members intact")
    lines = row("damaged", f"{len(damage):,}:")
    return lines + names([(d.member, d.reason) for d in damage], show_all or len(damage) <= SHOWN)
