"""The report and its parts: verdicts, tables, curves, pictures; and no text that becomes markup."""

from __future__ import annotations

import html.parser
import json
import math
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from mmpredict.training import report_curves, report_figures, samples
from mmpredict.training.report import newest, write_report
from mmpredict.training.report_table import (
    html_table,
    number,
    print_table,
    table_rows,
    verdict,
)

RESULTS = {
    "audio": {
        "energy_score": 0.5,
        "mse_of_mean": 0.4,
        "baselines": {
            "last_spectrum": {"energy_score": 0.45, "mse_of_mean": 0.8},
            "mean_spectrum": {"energy_score": 0.502, "mse_of_mean": 1.0},
        },
    },
    "text": {"nats_per_token": 2.0, "baselines": {"unigram": 3.0, "bigram": float("nan")}},
    "seconds": 12.34,
    "held_out_scenes": 1234,
}
EVIL = "<img src=x onerror=alert(1)>'\"&"


@pytest.mark.parametrize(
    ("model", "baseline", "said"),
    [
        (0.5, 1.0, "better by 50 %"),
        (0.97, 1.0, "better by 3.0 %"),
        (0.995, 1.0, "level with it"),
        (1.005, 1.0, "level with it"),
        (1.2, 1.0, "worse by 20 %"),
        (30.0, 1.0, "worse, 30.0 times it"),
        (0.5, 0.0, "no comparison"),
        (0.5, math.nan, "no comparison"),
        (None, 1.0, "no comparison"),
    ],
)
def test_verdict(model: float | None, baseline: float, said: str) -> None:
    assert verdict(model, baseline) == said


def test_rows_of_every_stream() -> None:
    rows = table_rows(RESULTS)
    assert [(row.stream, row.measure) for row in rows] == [
        ("audio", "energy score"),
        ("audio", "mse of mean"),
        ("text", "nats per token"),
    ]
    assert rows[0].verdicts == ["worse by 11 %", "level with it"]
    assert rows[2].baselines.keys() == {"unigram", "bigram"}
    assert number(math.nan) == "-" and number(None) == "-" and number(0.07892) == "0.0789"


def test_printed_table_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(RESULTS, "held-out documents")
    said = capsys.readouterr().out
    for words in ("last spectrum", "0.450", "level with it", "1,234 held-out", "12.3 s", "-"):
        assert words in said
    assert max(len(line.rstrip()) for line in said.splitlines()) <= 80 and "\u2026" not in said


def test_html_table_is_balanced() -> None:
    class Balance(html.parser.HTMLParser):
        open_tags: list[str] = []

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open_tags.pop() == tag

    balance = Balance()
    balance.feed(html_table({**RESULTS, EVIL: RESULTS["text"]}))
    assert not balance.open_tags


def write_metrics(path: Path, rows: list[dict[str, object]]) -> Path:
    names = sorted({name for row in rows for name in row})
    lines = [",".join(names)] + [",".join(str(row.get(n, "")) for n in names) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_curves_stand_beside_their_baselines(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"step": s, "train/loss/video_mean": 1 / (s + 1), "train/loss/video": 1, "train/lr": 1e-3}
        for s in range(0, 50, 5)
    ]
    rows += [
        {"step": s, "val/video/mse_of_mean": 0.5, "val/video/copy_last/mse_of_mean": 0.6}
        for s in (24, 49)
    ]
    rows += [
        {"step": 24, "val/text/nats_per_token": 2, "val/text/bigram": 3, "val/text/unigram": "nan"}
    ]
    series = report_curves.read_metrics(write_metrics(tmp_path / "metrics.csv", rows))
    assert report_curves.stream_names(series) == ["video", "text"]
    (video,) = report_curves.panels(series, "video")
    assert set(video.solid) == {"training", "held out"} and set(video.dashed) == {"copy_last"}
    (words,) = report_curves.panels(series, "text")
    assert set(words.solid) == {"held out"} and set(words.dashed) == {"bigram"}
    drawn = report_curves.draw(video)
    assert drawn.count("<polyline") == 3 and "copy last" in drawn and "NaN" not in drawn


@pytest.mark.parametrize(
    "values", [[1.0], [0.0, 0.0], [1e-9, 1e9], [-1.0, 1.0], [5.0, 5.0], [1e-3, 9e-4]]
)
def test_any_values_can_be_drawn(values: list[float]) -> None:
    points = [(float(step), value) for step, value in enumerate(values)]
    drawn = report_curves.draw(report_curves.Panel("x", {"training": points}, {"b": points[:1]}))
    assert drawn.startswith("<svg") and "nan" not in drawn and "inf" not in drawn


def test_long_curves_are_thinned() -> None:
    points = [(float(step), float(step)) for step in range(100_000)]
    assert len(report_curves.draw(report_curves.Panel("x", {"": points}, {}))) < 10_000


def test_damaged_or_missing_metrics(tmp_path: Path) -> None:
    assert report_curves.read_metrics(tmp_path / "none.csv") == {}
    (tmp_path / "bad.csv").write_text("step,val/video/energy_score\n1,abc\n2\n3,0.5,7,8\n,1\n")
    assert report_curves.read_metrics(tmp_path / "bad.csv") == {
        "val/video/energy_score": [(3, 0.5)]
    }


def test_strip_and_spectrograms() -> None:
    frames = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    image = report_figures.strip({"truth": frames, "error": frames}, [0.0, 0.1, 0.2, 0.3])
    assert image.dtype == np.uint8 and image.shape[1:] == (1080, 4)
    assert image[0, 0, 3] == 0 and report_figures.on_white(image)[0, 0].tolist() == [255] * 3
    for ears in (1, 2):
        mel = torch.randn(ears, 6, 20)
        rows = {"truth": mel, "predicted mean": mel}
        hertz = [100.0 * n for n in range(6)]
        shown = report_figures.spectrograms(rows, start_s=0.0, end_s=0.2, mel_hz=hertz)
        assert shown.shape[1:] == (1080, 4)


def test_amplified_difference() -> None:
    a = torch.tensor([[[[0, 200, 100]]]], dtype=torch.uint8)
    b = torch.tensor([[[[10, 0, 100]]]], dtype=torch.uint8)
    assert report_figures.amplified_difference(a, b).flatten().tolist() == [20, 255, 0]


def test_wav_is_what_was_heard(tmp_path: Path) -> None:
    waveform = torch.tensor([[0.0, 0.5, 1.0], [0.0, -0.5, -2.0]])
    samples.write_wav(tmp_path / "a.wav", waveform, 8000)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, 8000, 3)
        values = np.frombuffer(file.readframes(3), np.int16)
    assert values.tolist() == [0, 0, 16384, -16384, 32767, -32767]


def test_newest_step_wins(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    for name in ("step-000099-frames-1.png", "step-1000000-frames-1.png"):
        (tmp_path / "samples" / name).touch()
    assert [p.name for p in newest(tmp_path, "frames-*.png")] == ["step-1000000-frames-1.png"]
    assert newest(tmp_path, "sound-*.png") == []


def test_everything_from_outside_is_escaped(tmp_path: Path) -> None:
    run_dir = tmp_path / "<b>run"
    (run_dir / "samples").mkdir(parents=True)
    text = {"truth": EVIL, "tokens": [[EVIL, EVIL, 0.01]], "given": EVIL, "written": EVIL}
    (run_dir / "samples" / "step-000001-text.json").write_text(json.dumps([text]))
    about = {
        "prompt_end_s": 1.0,
        "notices": [EVIL],
        "texts": [[EVIL, None, None], [EVIL, 0.0, 1.0]],
    }
    (run_dir / "samples" / "step-000001-rollout.json").write_text(json.dumps(about))
    (run_dir / "samples" / "step-000001-rollout.mp4").write_bytes(b"video")
    (run_dir / "env.json").write_text(json.dumps({"starts": [{EVIL: {EVIL: EVIL}, "l": [EVIL]}]}))
    (run_dir / "config.yaml").write_text(EVIL)
    rows = [{"step": 1, f"val/{'<b>'}/mse_of_mean": 1.0, "train/loss/<b>_mean": 1.0}]
    path = write_report(
        run_dir,
        metrics=write_metrics(run_dir / "metrics.csv", rows),
        results={EVIL: RESULTS["text"]},
        scored=EVIL,
        step=1,
        skips=[EVIL],
    )
    page = path.read_text()
    assert "<img" not in page and "<b>run" not in page and "<h3><b>" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") >= 10
    assert 'src="data:video/mp4;base64,' in page


def test_an_empty_run_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "env.json").write_text("{damaged")
    path = write_report(
        tmp_path, metrics=tmp_path / "metrics.csv", results={}, scored="nothing", step=0
    )
    assert "after 0 steps" in path.read_text()
