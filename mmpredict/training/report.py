"""The report of a run: one HTML file that shows everything and needs nothing else, no network.

In: a run folder (metrics.csv, samples/, env.json, config.yaml) and its scores. Out: report.html.
All text is escaped: captions and file names come from strangers.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmpredict.training import report_curves
from mmpredict.training.report_before_after import html_section
from mmpredict.training.report_style import STYLE
from mmpredict.training.report_table import html_table

MEDIA = {".png": "image/png", ".wav": "audio/wav", ".mp4": "video/mp4"}
SHOWN_TOKENS = 400  # of a text
SURE, UNSURE = 0.5, 0.05  # chance of the true token above and below which it is not and is marked


def write_report(
    run_dir: Path,
    *,
    metrics: Path,
    results: Mapping[str, Any],
    scored: str,
    step: int,
    skips: Sequence[str] = (),
) -> Path:
    """Write `run_dir`/report.html.

    Args:
        run_dir: folder of the run.
        metrics: the CSV file of the curves; may be missing.
        results: scores as in results.json; may be empty.
        scored: what they were measured on.
        step: optimizer steps done.
        skips: lines about what the data left out.

    Returns:
        the path of the report.
    """
    series = report_curves.read_metrics(metrics)
    sections = [
        _section("Scores", _scores(results, scored)),
        _section("Before and after", html_section(run_dir)),
        _section("Curves", _curves(series)),
        _section("Next frame", _frames(run_dir)),
        _section("Next sound", _sound(run_dir)),
        _section("Next vectors", _vectors(run_dir)),
        _section("Text", _text(run_dir)),
        _section("Rollout", _rollout(run_dir)),
        _section("Probes", _probes(run_dir)),
        _section("What the data left out", _lines(skips)),
        _section("Environment", _environment(run_dir)),
        _section("Settings", _settings(run_dir)),
    ]
    name = " / ".join(html.escape(part) for part in run_dir.resolve().parts[-2:])
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{name}</title><style>{STYLE}</style></head><body>"
        f'<h1>{name}</h1><p class="note">after {step:,} steps</p>'
        f"{''.join(sections)}</body></html>\n"
    )
    path = run_dir / "report.html"
    part = path.with_name("report.html.part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, path)
    return path


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _scores(results: Mapping[str, Any], scored: str) -> str:
    if not results:
        return ""
    note = f'<p class="note">Measured on {html.escape(scored)}.</p>'
    return f'{note}<div class="wide">{html_table(results)}</div>'


def _curves(series: Mapping[str, report_curves.Points]) -> str:
    parts = []
    for name in report_curves.stream_names(series):
        parts.append(_grid(name, report_curves.panels(series, name)))
    parts.append(_grid("the run", report_curves.other_panels(series)))
    note = (
        "Lower is better. Dashed lines are the baselines, scored on the same validation documents; "
        "all but text in standard deviations of the training data."
    )
    return f'<p class="note">{note}</p>{"".join(parts)}' if any(parts) else ""


def _grid(name: str, panels: Sequence[report_curves.Panel]) -> str:
    if not panels:
        return ""
    cards = "".join(f'<div class="card">{report_curves.draw(panel)}</div>' for panel in panels)
    return f'<h3>{html.escape(name)}</h3><div class="curves">{cards}</div>'


def newest(run_dir: Path, pattern: str) -> list[Path]:
    """The files of the latest step in samples/ that match."""
    found = (run_dir / "samples").glob(f"step-*-{pattern}")
    found = sorted(found, key=lambda path: (_step(path), path.name))
    return [path for path in found if _step(path) == _step(found[-1])]


def _step(path: Path) -> int:
    number = re.match(r"step-(\d+)-", path.name)
    return int(number[1]) if number else -1


def data_uri(path: Path) -> str:
    """The file itself, as an address."""
    coded = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:{MEDIA[path.suffix]};base64,{coded}"


def _images(paths: Sequence[Path], alt: str) -> str:
    return "".join(
        f'<div class="card"><img alt="{alt} {n}" src="{data_uri(path)}"></div>'
        for n, path in enumerate(paths, start=1)
    )


def _frames(run_dir: Path) -> str:
    paths = newest(run_dir, "frames-*.png")
    if not paths:
        return ""
    note = (
        f"Step {_step(paths[0]):,}, validation documents. Each column is forecast by itself from "
        "the true past. The lowest two rows show what the mean, and what a copy of the frame "
        "before, get wrong: black is right."
    )
    return f'<p class="note">{note}</p>{_images(paths, "next frames")}'


def _sound(run_dir: Path) -> str:
    paths = newest(run_dir, "sound-*.png")
    if not paths:
        return ""
    note = (
        f"Step {_step(paths[0]):,}. Each chunk is forecast by itself from the true past; phases "
        "are estimated from the spectra, for the truth as well."
    )
    sounds = []
    for path in reversed(newest(run_dir, "sound-*.wav")):
        label = "truth" if "truth" in path.name else "predicted samples"
        sounds.append(f'<span>{label}<br><audio controls src="{data_uri(path)}"></audio></span>')
    players = f'<div class="sounds">{"".join(sounds)}</div>'
    return f'<p class="note">{note}</p>{_images(paths, "spectrograms")}{players}'


def _vectors(run_dir: Path) -> str:
    paths = newest(run_dir, "series-*.png")
    if not paths:
        return ""
    note = (
        f"Step {_step(paths[0]):,}, validation documents. Each vector is forecast by itself from "
        "the true past, in the units of the data."
    )
    return f'<p class="note">{note}</p>{_images(paths, "next vectors")}'


def _text(run_dir: Path) -> str:
    paths = newest(run_dir, "text.json")
    documents = _json(paths[-1]) if paths else None
    if not documents:
        return ""
    note = (
        f"Step {_step(paths[-1]):,}. First the true text; a token to which the model gave a chance "
        'below 50 % is <span class="maybe">marked</span>, below 5 % '
        '<span class="wrong">so</span>; hold the pointer over a token for the model\'s guess. '
        "Then what the model writes for the same clip with its likeliest tokens, at the times of "
        "the true ones."
    )
    parts = [f'<p class="note">{note}</p>']
    for n, document in enumerate(documents, start=1):
        marked = "".join(_token(*token) for token in document["tokens"][:SHOWN_TOKENS])
        parts.append(f'<h3>document {n}: truth</h3><div class="text">{marked}</div>')
        if "written" in document:
            given = html.escape(document["given"])
            written = html.escape(document["written"])
            head = f'<span class="no">{given}</span>' if given else ""
            parts.append(f'<h3>the model writes</h3><div class="text">{head}{written}</div>')
    return "".join(parts)


def _token(token: str, guess: str, chance: float) -> str:
    mark = "" if chance >= SURE else ' class="maybe"' if chance >= UNSURE else ' class="wrong"'
    said = html.escape(f"chance {chance:.0%}; likeliest: {guess!r}", quote=True)
    shown = html.escape(token) if token.strip("\n") else "&crarr;\n"
    return f'<span{mark} title="{said}">{shown}</span>'


def _rollout(run_dir: Path) -> str:
    videos = newest(run_dir, "rollout*.mp4")
    sounds = [] if videos else newest(run_dir, "rollout*.wav")
    images = newest(run_dir, "rollout.png")
    if not videos and not sounds and not images:
        return ""
    about = _json(next(iter(newest(run_dir, "rollout.json")), None)) or {}
    step, start_s = _step([*videos, *sounds, *images][0]), about.get("prompt_end_s", 0)
    note = (
        f"Step {step:,}. The first {start_s:.2f} s are a validation document (its sound rebuilt "
        "from spectra); from there on the model goes on from what it made."
    )
    players = [f'<video controls loop src="{data_uri(path)}"></video>' for path in videos]
    players += [f'<audio controls src="{data_uri(path)}"></audio>' for path in sounds]
    drawn = _images(images, "rollout")
    lines = [
        text if end is None else f"{end:.2f} s  {text}" for text, _, end in about.get("texts", [])
    ]
    words = f'<div class="text">{html.escape(chr(10).join(lines))}</div>' if lines else ""
    notices = _lines(about.get("notices", []))
    return f'<p class="note">{note}</p>{"".join(players)}{drawn}{words}{notices}'


def _probes(run_dir: Path) -> str:
    """The page of the latest `mmpredict probe` of one of the run's checkpoints."""
    found = sorted(run_dir.glob("ckpt/probe-*/section.html"), key=lambda p: p.stat().st_mtime)
    return found[-1].read_text(encoding="utf-8") if found else ""


def _lines(lines: Sequence[str]) -> str:
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>" if lines else ""


def _environment(run_dir: Path) -> str:
    starts = (_json(run_dir / "env.json") or {}).get("starts") or []
    if not starts:
        return ""
    again = f'<p class="note">Started {len(starts)} times; this is the last.</p>'
    return again * (len(starts) > 1) + _definitions(starts[-1])


def _definitions(values: Mapping[str, Any]) -> str:
    rows = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {inner}" for key, inner in value.items())
        elif isinstance(value, list):
            value = ", ".join(str(inner) for inner in value)
        shown = "none" if value in (None, "") else str(value)
        rows.append(f"<dt>{html.escape(str(name))}</dt><dd>{html.escape(shown)}</dd>")
    return f"<dl>{''.join(rows)}</dl>"


def _settings(run_dir: Path) -> str:
    path = run_dir / "config.yaml"
    if not path.is_file():
        return ""
    text = html.escape(path.read_text(encoding="utf-8", errors="replace"))
    return f"<details><summary>config.yaml</summary><pre>{text}</pre></details>"


def _json(path: Path | None) -> Any:
    """The content of a file; None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path is not None else None
    except (OSError, ValueError):
        return None
