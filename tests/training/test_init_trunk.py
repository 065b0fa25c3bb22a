"""Training that begins with a language model: it says at first what the model says, and its
checkpoint needs the model's folder no more."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from datamodules import Loading, Text, World
from mmpredict.model import HeadConfig, PredictorConfig
from mmpredict.model.rotary import Llama3Scaling
from mmpredict.schema import Layout, Modality, UserError
from mmpredict.tokens import MelChunks, Patches, TextTokens
from mmpredict.training import Pretrain
from mmpredict.training.checkpoint import load_predictor
from tests.model.llama_folder import write_llama

TEXT = int(Modality.TEXT)
HEADS = {name: HeadConfig(dim=32, depth=1, draws=1) for name in ("audio", "video")}
LOADING = Loading(context_length=320, rows=2, workers=0, statistics_documents=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("models") / "llama")


def world(folder: Path) -> World:
    audio, video = MelChunks(sample_rate=8000, num_mels=16, hops=2), Patches(16, patch=8, fps=8)
    text = TextTokens(kind="bpe", path=str(folder))
    scenes = {"train_scenes": 12, "val_scenes": 3, "test_scenes": 3}
    return World(audio, video, text, **scenes, loading=LOADING)


def pretrain(layout: Layout, folder: Path) -> Pretrain:
    config = PredictorConfig(heads=HEADS)
    return Pretrain(layout, config, init_trunk_from=str(folder), eval_samples=2, sample_steps=2)


def test_the_first_text_loss_is_the_language_models_own(folder: Path):
    """On help topics, in a predictor that also sees and hears; the first token of a document,
    which the model alone cannot predict, aside."""
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    data = Text(text=TextTokens(kind="bpe", path=str(folder)), loading=LOADING)
    data.setup()
    batch = next(iter(data.val_dataloader()))
    predictor = pretrain(world(folder).layout, folder).predictor.eval()
    with torch.no_grad():
        said = predictor(batch).streams[TEXT]
        mine = F.cross_entropy(said.logits_MV, said.targets_M, reduction="none")
        mine = mine[batch.prev_any[batch.modality == TEXT] >= 0]
        theirs = []
        rows = batch.doc_id[batch.modality == TEXT], batch.modality.eq(TEXT).nonzero()[:, 0]
        for row in range(batch.num_rows):
            for doc in range(1, int(batch.doc_id[row].max()) + 1):
                ids = batch.contents[TEXT][(rows[0] == doc) & (rows[1] == row)]
                logits = model(ids[None]).logits[0, :-1]
                theirs.append(F.cross_entropy(logits, ids[1:], reduction="none"))
    torch.testing.assert_close(mine, torch.cat(theirs), atol=1e-4, rtol=0)


def test_a_checkpoint_needs_the_folder_no_more(folder: Path, tmp_path: Path):
    here = Path(shutil.copytree(folder, tmp_path / "llama"))
    data = world(here)
    model = pretrain(data.layout, here)
    before = model.predictor.trunk.layers[0].attention.q_proj.weight.detach().clone()
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
    )
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    shutil.rmtree(here)
    predictor, codecs, _ = load_predictor(tmp_path / "x.ckpt")
    assert predictor.config == model.predictor.config
    assert predictor.config.rotary.scaling == Llama3Scaling(original_ticks=64)
    assert predictor.heads["text"].weight is predictor.embed.tables["text"].weight
    assert codecs.text == data.codecs.text
    assert not torch.equal(before, predictor.trunk.layers[0].attention.q_proj.weight)
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        assert torch.equal(model.predictor.eval().hidden(batch), predictor.hidden(batch))


def test_another_vocabulary_is_refused_with_the_remedy(folder: Path):
    """A tokenizer.json alone gets an END of its own, for which the model has no row."""
    for text in (TextTokens(), TextTokens(kind="bpe", path=str(folder / "tokenizer.json"))):
        with pytest.raises(UserError, match=r"text ids, the run \d+; give data.text .*the folder"):
            pretrain(Layout((text.spec,)), folder)
