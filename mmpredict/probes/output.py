"""What a probe run leaves. In: rows of a model and of its baselines. Out: files, without a time in
any of them: results.json, per_item.jsonl (one more per baseline), curves.json, table.md,
section.html (for the report of the run) and report.html."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmpredict.probes.evidence import Footage
from mmpredict.probes.items import Suite, Take
from mmpredict.probes.page import section
from mmpredict.probes.run import ProbeRun
from mmpredict.probes.set_picture import draw_set
from mmpredict.probes.summary import summarise
from mmpredict.probes.table import markdown
from mmpredict.probes.writing import OWN_BASELINES, as_json, write_whole
from mmpredict.tokens import Codecs

FILES = ("results.json", "per_item.jsonl", "curves.json", "table.md", "report.html")


def write_results(  # noqa: PLR0913 - all that a run leaves is made of
    out: Path,
    about: Mapping[str, Any],
    asked: ProbeRun,
    baselines: Mapping[str, ProbeRun],
    *,
    more: Mapping[str, Any],
    pictures: Mapping[str, bytes],
    style: str,
) -> str:
    """Write all files.

    Args:
        out: the folder.
        about: what was asked of what.
        asked: the model's rows.
        baselines: by name.
        more: further parts of results.json ("frozen").
        pictures: PNGs of matched sets, by title.
        style: of the page.

    Returns:
        the table.
    """
    asked.write(out / "per_item.jsonl")
    for number, (name, run) in enumerate(baselines.items()):
        label = name.replace(" ", "_") if name in OWN_BASELINES else number
        run.write(out / f"per_item-{label}.jsonl")
    others = {name: run.rows for name, run in baselines.items()}
    results = {"about": about, "variants": summarise(asked.rows, others), **more}
    write_whole(out / "results.json", as_json(results))
    write_whole(out / "curves.json", as_json(_plain_curves(asked)))
    table = markdown(results)
    write_whole(out / "table.md", table)
    body = section(results, pictures)
    write_whole(out / "section.html", body)
    title = f"probes: {html.escape(str(about['suite']))}"
    write_whole(
        out / "report.html",
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title><style>{style}</style></head><body><h1>{title}</h1>"
        f'<p class="note">{html.escape(str(about["model"]))}</p>{body}</body></html>\n',
    )
    return table


def _plain_curves(asked: ProbeRun) -> dict[str, Any]:
    return {
        f"{item}, {variant}": [[asdict(curve) for curve in clip] for clip in clips]
        for (item, variant), clips in asked.curves.items()
    }


def set_pictures(suite: Suite, asked: ProbeRun, codecs: Codecs) -> dict[str, bytes]:
    """A PNG of every matched set whose curves were kept, by "family, evidence: id"."""
    items = {item.id: item for item in suite.items}
    pictures = {}
    film = Footage(suite.sources, codecs, ["video"]).film
    for (name, variant), clips in asked.curves.items():
        item = items[name]
        takes = [suite.sources[evidence.source] for evidence in item.evidence]
        if not all(isinstance(take, Take) for take in takes) or not all(clips):
            continue
        frames, times_s = [], []
        if "video" in variant and codecs.video is not None:
            clip_of = [take.record(film).clip for take in takes]
            frames = [clip.frames_TCHW for clip in clip_of]
            times_s = clip_of[0].times_s.tolist()
        title = f"{item.family}, {variant}: {item.id}"
        pictures[title] = draw_set(item, frames, times_s, clips)
    return pictures
