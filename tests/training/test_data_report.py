"""What is said of the data: rows, files skipped by kind, substitutes, cut documents."""

from __future__ import annotations

import json
from types import SimpleNamespace

from mmpredict.training.data_report import DataReport, packing_lines, skip_lines


class Log:
    """As a datamodule keeps it."""

    def __init__(self, bad: int = 0, substituted: int = 0, truncated: int = 0) -> None:
        self.reasons = {f"{n}.mp4": "broken" for n in range(bad)}
        self.kinds = dict.fromkeys(self.reasons, "limits")
        self.substituted, self.truncated = substituted, truncated

    def counts(self) -> dict[str, int]:
        return {"video/limits": len(self.reasons)}


def test_skip_lines() -> None:
    assert skip_lines(Log()) == []
    lines = skip_lines(Log(12, substituted=3, truncated=1))
    assert lines[:2] == ["12 files skipped (12 video limits):", "  0.mp4: broken"]
    assert lines[11] == "  ... and 2 more"
    assert lines[12] == "3 times a broken document was replaced by another"
    assert lines[13].startswith("1 time a document was longer")


def test_packing_lines() -> None:
    assert packing_lines({"skipped": 0.0}) == []
    figures = {
        "efficiency": 0.9912,
        "documents_per_row": 4.5,
        "share/video": 0.8,
        "share/text": 0.2,
    }
    assert packing_lines(figures) == [
        "training rows: 99.1 % of the slots are real tokens, 4.5 documents a row; "
        "video 80 %, text 20 %"
    ]


def test_the_quarantine_list_is_whole_and_grows(tmp_path) -> None:
    log = Log(2)
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(skip_log=log), is_global_zero=True, default_root_dir=tmp_path
    )
    report = DataReport()
    report.write(trainer)
    log.reasons["new.wav"] = "its bytes differ"
    log.kinds["new.wav"] = "hash"
    report.on_exception(trainer, None, RuntimeError())
    rows = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert rows[0] == {"source": "0.mp4", "reason": "broken", "kind": "limits"}
    assert rows[2] == {"source": "new.wav", "reason": "its bytes differ", "kind": "hash"}
    assert len(rows) == 3
