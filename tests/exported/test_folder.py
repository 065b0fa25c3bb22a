"""An export comes back bit for bit; what is damaged, foreign or hostile is refused in words."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import mmpredict
from mmpredict.exported import folder as folder_module
from mmpredict.exported import hub, is_export, read_folder, write_folder
from mmpredict.schema import Clip, TextPiece, UserError
from mmpredict.sequence import interleave, pack
from mmpredict.tokens import Codecs, TextTokens
from tests.generate.small import make_codecs, make_model, make_prompt
from tests.model.heads_small import write_tokenizers

ALL = ("audio", "video", "text", "action")


def logits(predictor, codecs: Codecs, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """All that a predictor says of a packed row."""
    document = interleave(codecs.encode(make_prompt(*names)), codecs.layout)
    batch = pack([[document], [document]], document.doc_id.shape[1] + 3)
    torch.manual_seed(7)
    with torch.no_grad():
        said = predictor(batch)
    found = {"next": said.next_stream.logits_MV}
    for modality, stream in said.streams.items():
        for name, value in vars(stream).items():
            if isinstance(value, torch.Tensor):
                found[f"{modality}.{name}"] = value
    return found


def exported(where: Path, *names: str, **settings) -> Path:
    model, codecs = make_model(*names, **settings)
    write_folder(where, model, codecs, context_length=128)
    return where


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return exported(tmp_path / "export", "audio", "text")


@pytest.mark.parametrize(
    ("names", "settings"),
    [
        (ALL, {}),
        (ALL, {"kind": "gmm"}),
        (ALL, {"kind": "regression", "tie_text": False, "experts": "ffn"}),
        (("video", "text"), {"horizons": (1, 2), "window": 16, "num_kv_heads": 1}),
        (("text",), {}),
    ],
)
def test_every_tensor_and_every_number_said_come_back_bitwise(names, settings, tmp_path):
    model, codecs = make_model(*names, **settings)
    write_folder(tmp_path / "x", model, codecs, context_length=128)
    loaded = mmpredict.load(tmp_path / "x")
    before, after = model.state_dict(), loaded.predictor.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert loaded.predictor.config == model.config and loaded.codecs == codecs
    assert loaded.context_length == 128 and not loaded.predictor.training
    if names != ("text",):
        ours, theirs = logits(model, codecs, names), logits(loaded.predictor, codecs, names)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_tied_table_is_stored_once_and_tied_again(tmp_path):
    path = exported(tmp_path / "x", "text")
    assert (
        len(
            {"embed.tables.text.weight", "heads.text.weight"}
            & load_file(path / "model.safetensors").keys()
        )
        == 1
    )
    predictor = mmpredict.load(path).predictor
    assert predictor.embed.tables["text"].weight is predictor.heads["text"].weight


def test_a_code_head_needs_its_tokenizers_file_no_more(tmp_path):
    from mmpredict.model import HeadConfig, Predictor, PredictorConfig

    codecs = make_codecs("action")
    spec = codecs.layout.streams[0]
    file = tmp_path / "tokenizer.ckpt"
    write_tokenizers(file, [spec])
    head = HeadConfig(kind="fsq", dim=32, depth=1, tokenizer=str(file))
    config = PredictorConfig(dim=32, depth=1, num_heads=2, heads={"action": head})
    model = Predictor(codecs.layout, config).eval()
    write_folder(tmp_path / "x", model, codecs, context_length=64)
    file.unlink()
    again = mmpredict.load(tmp_path / "x").predictor.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_the_trained_vocabulary_travels_as_a_tokenizer_file(tmp_path):
    from mmpredict.model import Predictor, PredictorConfig

    text = TextTokens(kind="bpe", vocab_size=270).fit(["the red ball rolls", "the red cup"] * 5)
    codecs = Codecs(text=text)
    model = Predictor(codecs.layout, PredictorConfig(dim=32, depth=1, num_heads=2))
    files = write_folder(tmp_path / "x", model, codecs, context_length=None)
    assert "tokenizer.json" in {path.name for path in files}
    assert "vocabulary" in (tmp_path / "x" / "config.json").read_text()
    assert text.vocabulary not in (tmp_path / "x" / "config.json").read_text()
    loaded = mmpredict.load(tmp_path / "x")
    assert loaded.codecs == codecs
    assert loaded.about["codecs"] == codecs.to_plain()
    clip = Clip(texts=(TextPiece("the red cup rolls"),))
    assert torch.equal(loaded.codecs.encode(clip)[0].contents, codecs.encode(clip)[0].contents)


def test_a_vocabulary_of_a_file_does_not_tell_where_the_file_was(tmp_path):
    from mmpredict.model import Predictor, PredictorConfig

    trained = TextTokens(kind="bpe", vocab_size=270).fit(["the red ball rolls"] * 5)
    private = tmp_path / "somebody" / "words.json"
    private.parent.mkdir()
    private.write_text(trained.vocabulary)
    codecs = Codecs(text=TextTokens(kind="bpe", path=str(private)))
    model = Predictor(codecs.layout, PredictorConfig(dim=32, depth=1, num_heads=2))
    write_folder(tmp_path / "x", model, codecs, context_length=None)
    private.unlink()
    assert "somebody" not in (tmp_path / "x" / "config.json").read_text()
    assert mmpredict.load(tmp_path / "x").codecs.layout == codecs.layout


def test_it_goes_on_from_a_prompt_as_before(tmp_path):
    from mmpredict.generate import rollout

    model, codecs = make_model("audio", "text")
    write_folder(tmp_path / "x", model, codecs, context_length=128)
    prompt = make_prompt("audio", "text", seconds=0.5)
    ours = rollout(model, codecs, prompt, seconds=0.2, seed=3, context_length=128)
    theirs = mmpredict.load(tmp_path / "x").rollout(prompt, seconds=0.2, seed=3)
    assert torch.equal(ours.clip.waveform_CS, theirs.clip.waveform_CS)
    assert ours.clip.texts == theirs.clip.texts
    with pytest.raises(TypeError, match="sede"):
        mmpredict.load(tmp_path / "x").rollout(prompt, seconds=0.2, sede=3)


def test_importing_is_light_and_an_export_is_read_without_the_trainer(small):
    code = (
        "import sys, mmpredict\n"
        "assert 'torch' not in sys.modules\n"
        f"mmpredict.load({str(small)!r})\n"
        "assert 'pytorch_lightning' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# -- written whole or not at all -----------------------------------------------------------------


def test_a_folder_with_something_in_it_is_refused(small, tmp_path):
    model, codecs = make_model("text")
    with pytest.raises(UserError, match="not empty"):
        write_folder(small, model, codecs, context_length=1)
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("years of work")
    with pytest.raises(UserError, match="no export of mmpredict"):
        write_folder(other, model, codecs, context_length=1, overwrite=True)
    assert (other / "chapter.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file or a link"):
        write_folder(tmp_path / "file", model, codecs, context_length=1)


def test_overwrite_replaces_an_earlier_export_and_leaves_nothing_of_it(small):
    (small / "stray").write_text("")
    model, codecs = make_model("text")
    write_folder(small, model, codecs, context_length=1, overwrite=True)
    assert {path.name for path in small.iterdir()} == {"config.json", "model.safetensors"}
    assert mmpredict.load(small).codecs == codecs
    assert [path.name for path in small.parent.iterdir()] == [small.name]


@pytest.mark.parametrize("earlier", [False, True])
def test_a_failure_leaves_what_was_there_before(earlier, tmp_path, monkeypatch):
    place = tmp_path / "x"
    if earlier:
        exported(place, "audio", "text")
    before = {path.name: path.read_bytes() for path in place.iterdir()} if earlier else None

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="space"):
        exported_again(place, earlier)
    assert sorted(path.name for path in tmp_path.iterdir()) == (["x"] if earlier else [])
    if earlier:
        assert {path.name: path.read_bytes() for path in place.iterdir()} == before


def exported_again(place: Path, overwrite: bool) -> None:
    model, codecs = make_model("text")
    write_folder(place, model, codecs, context_length=1, overwrite=overwrite)


# -- damaged and hostile -------------------------------------------------------------------------


def header_of(path: Path) -> tuple[dict, bytes]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def with_header(path: Path, header: dict, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def huge_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 62) + path.read_bytes()[8:])


def large_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 200_000_000) + b" " * 1000)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def past_the_end(path: Path) -> None:
    header, data = header_of(path)
    name = next(n for n in header if n != "__metadata__")
    header[name]["data_offsets"] = [0, 1 << 40]
    with_header(path, header, data)


def overlapping(path: Path) -> None:
    header, data = header_of(path)
    names = [n for n in header if n != "__metadata__"]
    header[names[1]] = dict(header[names[0]])
    with_header(path, header, data)


def no_json(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 16) + b"{" * 16)


def a_pickle(path: Path) -> None:
    torch.save({"weights": torch.zeros(2)}, path)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def missing_tensor(path: Path) -> None:
    tensors = load_file(path)
    tensors.popitem()
    save_file(tensors, path)


def extra_tensor(path: Path) -> None:
    save_file(load_file(path) | {"stowaway": torch.zeros(3)}, path)


def other_shape(path: Path) -> None:
    tensors = load_file(path)
    tensors["next_stream.bias"] = torch.zeros(9)
    save_file(tensors, path)


def other_type(path: Path) -> None:
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)


WEIGHT_DAMAGE = [
    *(huge_header, large_header, truncated, past_the_end, overlapping, no_json, a_pickle, empty),
    *(missing_tensor, extra_tensor, other_shape, other_type),
]


@pytest.mark.parametrize("damage", WEIGHT_DAMAGE, ids=lambda f: f.__name__)
def test_hostile_weights_are_refused(damage, small):
    damage(small / "model.safetensors")
    with pytest.raises(UserError, match="model.safetensors") as error:
        mmpredict.load(small)
    assert len(str(error.value).splitlines()) <= 8


def changed(path: Path, *keys: str, value: object) -> None:
    about = json.loads((path / "config.json").read_text())
    place = about
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (path / "config.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("kind",), "something", "not written by mmpredict export"),
        (("format",), 1, "export it again"),
        (("format",), 99, "install a newer"),
        (("format",), None, "export it again"),
        (("predictor", "depth"), 10**9, "depth"),
        (("predictor", "dim"), 2**30, "numbers|overflowed"),
        (("predictor", "hidden"), 2**40, "numbers"),
        (("predictor", "dim"), 64, "not as config.json says"),
        (("predictor", "dim"), "many", "does not describe a predictor"),
        (("predictor", "num_heads"), 0, "does not describe a predictor"),
        (("predictor", "unheard_of"), 1, "unheard_of"),
        (("predictor",), [], "does not describe a predictor"),
        (("codecs",), {}, "does not describe a predictor"),
        (("codecs", "text"), {"kind": "bpe", "path": "/etc/passwd"}, "another place"),
        (("codecs", "text"), {"kind": "bpe", "vocabulary": "{}"}, "another place"),
        (("codecs", "text"), {"kind": "bpe", "vocab_size": 300}, "tokenizer.json is missing"),
        (
            ("predictor", "encoders"),
            {"video": {"name": "resnet18", "weights": "/etc/passwd"}},
            "outside the export",
        ),
    ],
)
def test_a_false_config_is_refused_in_words(keys, value, words, small):
    changed(small, *keys, value=value)
    with pytest.raises(UserError, match=words):
        mmpredict.load(small)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[1]", "\x00", '{"kind": 1}'])
def test_a_config_that_is_no_config(text, small):
    (small / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        mmpredict.load(small)


def test_a_tokenizer_that_is_none(tmp_path):
    path = exported(tmp_path / "x", "text")
    changed(path, "codecs", "text", value={"kind": "bpe", "vocab_size": 257})
    (path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(UserError, match="does not describe a predictor|tokenizer"):
        logits(*read_folder(path)[:2], ("text",))


def test_no_memory_is_taken_for_sizes_that_the_file_does_not_have(small):
    import resource

    changed(small, "predictor", "hidden", value=2**33)  # 3 TB of weights
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="numbers"):
        mmpredict.load(small)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


# -- a hub ---------------------------------------------------------------------------------------


def test_the_mixin_uploads_the_files_as_they_are(small, monkeypatch):
    (small / "README.md").write_text("card")
    (small / "evil.py").write_text("import os")
    sent: dict[str, object] = {}

    class Api:
        def __init__(self, token: object = None) -> None:
            pass

        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> object:
            sent.update(repo_id=repo_id, private=private)
            return type("Made", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path: Path, **more: object) -> str:
            sent["files"] = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}
            return "https://hub.example/commit/1"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert hub.push(small, "somebody/model") == "https://hub.example/commit/1"
    assert sent["repo_id"] == "somebody/model" and sent["private"] is True
    wanted = {p.name: p.read_bytes() for p in small.iterdir() if p.suffix != ".py"}
    assert sent["files"] == wanted


def test_what_comes_from_a_hub_is_read_like_a_folder(small, monkeypatch):
    asked: dict[str, object] = {}

    def download(name: str, **more: object) -> str:
        asked.update(name=name, **more)
        return str(small)

    monkeypatch.setattr(hub, "snapshot_download", download)
    loaded = hub.load_from_hub("somebody/model", revision="abc")
    assert asked["name"] == "somebody/model" and asked["revision"] == "abc"
    assert not any(pattern.endswith((".py", ".bin", ".pt")) for pattern in asked["allow_patterns"])
    assert loaded.codecs == make_codecs("audio", "text")


def test_only_an_export_goes_to_a_hub(tmp_path):
    with pytest.raises(UserError, match="no folder that mmpredict export wrote"):
        hub.push(tmp_path, "somebody/model")
    assert not is_export(tmp_path)


def test_the_folder_is_as_open_as_others(small):
    mask = folder_module._umask()
    assert small.stat().st_mode & 0o777 == 0o777 & ~mask
    assert os.access(small / "config.json", os.R_OK)
