"""What a probe run leaves: whole files that agree with each other, the same bytes in every run."""

import json
from pathlib import Path

import torch

from mmpredict.model import Predictor, PredictorConfig
from mmpredict.probes.items import Evidence, Item, Suite
from mmpredict.probes.output import FILES, set_pictures, write_results
from mmpredict.probes.reference import Constant
from mmpredict.probes.run import ModelScorer, run_suite
from mmpredict.tokens import Codecs, MelChunks, Patches, TextTokens
from mmpredict.world import matched_set

CODECS = Codecs(video=Patches(16, 8, 4), audio=MelChunks(8000, 2), text=TextTokens())
ABOUT = {"model": "<tiny>", "suite": "sets", "suite_sha": "0" * 64, "world_version": "1"}


def sets() -> Suite:
    found = matched_set("permanence", 0)
    takes = {f"p{n}": take for n, take in enumerate(found.takes)}
    evidence = tuple(Evidence(name) for name in takes)
    item = Item("p", "permanence_voe", "voe", evidence, ("video",), possible=found.possible,
                cut_s=found.cut_s, cluster="p")  # fmt: skip
    return Suite("sets", (item,), takes)


def written(out: Path) -> dict[str, bytes]:
    torch.manual_seed(0)
    config = PredictorConfig(dim=16, depth=1, num_heads=2)
    predictor, suite = Predictor(CODECS.layout, config).eval(), sets()
    asked = run_suite(
        ModelScorer(predictor, CODECS, suite.sources, variants=["video"]), suite, ["video"]
    )
    table = write_results(
        out,
        ABOUT,
        asked,
        {"constant": run_suite(Constant(), suite, ["video"])},
        more={},
        pictures=set_pictures(suite, asked, CODECS),
        style="",
    )
    assert table in (out / "table.md").read_text()
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_files_agree_and_repeat(tmp_path: Path):
    files = written(tmp_path / "one")
    assert set(FILES) <= set(files)
    assert files == written(tmp_path / "two")
    results = json.loads(files["results.json"])
    entry = results["variants"]["video"]["families"]["permanence_voe"]
    row = json.loads(files["per_item.jsonl"])
    assert entry["score"] == row["score"]
    assert entry["baselines"]["constant"]["score"] == 0.5
    curves = json.loads(files["curves.json"])["p, video"]
    assert [len(clip) for clip in curves] == [1] * 4  # one stream in each of four clips
    page = files["report.html"].decode()
    assert "<tiny>" not in page and "&lt;tiny&gt;" in page
    assert page.count("data:image/png;base64,") == 1
