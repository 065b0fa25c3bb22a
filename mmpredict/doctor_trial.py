"""A trial of everything in small: media, training, going on exactly, a rollout. In: an empty
folder. Out: a line of JSON for each stage. Runs as a process of its own (`python -m
mmpredict.doctor_trial FOLDER`), because a broken library may take the process with it.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

RECIPE = """\
seed_everything: 0
trainer:
  max_steps: 4
  accelerator: cpu
  limit_val_batches: 0
  limit_test_batches: 0
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  enable_progress_bar: false
  callbacks:
  - class_path: mmpredict.training.saving.Checkpoints
    init_args: {every_n_train_steps: 2}
model:
  class_path: mmpredict.training.Pretrain
  init_args:
    predictor:
      dim: 32
      depth: 1
      num_heads: 2
      heads:
        audio: {dim: 32, depth: 1, draws: 1}
        video: {dim: 32, depth: 1, draws: 1}
    ema: 0.9
data:
  class_path: datamodules.World
  init_args:
    video: {size: 16, patch: 8, fps: 8}
    audio: {sample_rate: 8000, channels: 2, num_mels: 8, hops: 2}
    text: {kind: bytes}
    train_scenes: 8
    val_scenes: 1
    test_scenes: 1
    loading: {context_length: 320, rows: 1, statistics_documents: 2}
"""
GREY = 12  # levels by which a frame may differ after H.264


def stages(folder: Path) -> dict[str, Callable[[], str]]:
    """What is tried, in order; each gives a sentence, or raises."""
    return {
        "torch": torch_works,
        "media": lambda: media(folder),
        "training": lambda: training(folder),
        "resume": lambda: resume(folder),
        "rollout": lambda: rollout(folder),
    }


def torch_works() -> str:
    """The library loads and multiplies, on every device that it has."""
    import torch

    devices = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    wanted = torch.arange(64.0).reshape(8, 8)
    for device in devices:
        there = wanted.to(device)
        if not torch.allclose((there @ there.T).cpu(), wanted @ wanted.T):
            raise RuntimeError(f"a product of two matrices is wrong on {device}")
    names = [torch.cuda.get_device_name(device) for device in devices[1:]]
    if Path("/proc/driver/nvidia/version").is_file() and not names:
        raise RuntimeError(
            f"there is an NVIDIA driver, but torch {torch.__version__} sees no GPU: a build "
            "without CUDA, or a driver too old for it"
        )
    return f"{torch.__version__} computes on {', '.join(['cpu', *names])}"


def media(folder: Path) -> str:
    """mp4 and wav are written and read back."""
    import torch

    from mmpredict.media import read_clip, write_clip, write_wav
    from mmpredict.schema import Clip, TextPiece

    ramp = torch.linspace(0, 255, 32).round().to(torch.uint8)
    frames = ramp.expand(8, 3, 32, 32).contiguous()
    times_s = torch.arange(8, dtype=torch.float64) / 8
    sound = 0.5 * torch.sin(torch.arange(16000) * 0.1).expand(2, -1)
    texts = (TextPiece("a ball", 0.1, 0.6),)
    clip = Clip(frames, times_s, sound, 16000, texts=texts)
    write_clip(folder / "x.mp4", clip, fps=8)
    write_wav(folder / "x.wav", sound, 16000)
    again = read_clip(folder / "x.mp4", fps=8, sample_rate=16000, channels=2)
    off = (again.frames_TCHW.int() - frames[: len(again.frames_TCHW)].int()).abs().max()
    if len(again.frames_TCHW) != 8 or int(off) > GREY or again.waveform_CS is None:
        raise RuntimeError(f"{len(again.frames_TCHW)} of 8 frames came back, {int(off)} levels off")
    exact = read_clip(folder / "x.wav", sample_rate=16000, channels=2).waveform_CS
    if exact.shape != sound.shape or float((exact - sound).abs().max()) > 1e-4:
        raise RuntimeError("a wav file did not come back as it was written")
    return "mp4 (H.264, AAC) and wav are written and read"


def training(folder: Path) -> str:
    """Four steps, with a checkpoint after every second."""
    (folder / "trial.yaml").write_text(RECIPE, encoding="utf-8")
    _verb("fit", "--config", str(folder / "trial.yaml"), "--run_dir", str(folder / "run"))
    return "4 steps on made-up scenes, checkpoints written"


def resume(folder: Path) -> str:
    """From the middle to the same end."""
    import torch

    from mmpredict.training.checkpoint import read

    _verb(
        *("fit", "--config", str(folder / "trial.yaml"), "--run_dir", str(folder / "again")),
        *("--ckpt_path", str(folder / "run/ckpt/previous.ckpt")),
    )
    one, other = (read(folder / name / "ckpt/last.ckpt") for name in ("run", "again"))
    if one["global_step"] != 4 or other["global_step"] != 4:
        raise RuntimeError(f"the runs ended at steps {one['global_step']}, {other['global_step']}")
    differs = [
        name
        for name, tensor in one["state_dict"].items()
        if not torch.equal(tensor, other["state_dict"][name])
    ]
    if differs:
        raise RuntimeError(
            f"a resumed run ends with other weights than one that was not stopped ({len(differs)} "
            f"of {len(one['state_dict'])} tensors, the first is {differs[0]})"
        )
    return "a resumed run ends with the same weights, bit for bit"


def rollout(folder: Path) -> str:
    """The trained model goes on, in files."""
    out = folder / "next.mp4"
    _verb(
        *("rollout", "--ckpt", str(folder / "run/ckpt/last.ckpt"), "--prompt", "a ball rolls"),
        *("--seconds", "0.3", "--steps", "2", "--out", str(out)),
    )
    missing = [s for s in (".mp4", ".wav") if not out.with_suffix(s).is_file()]
    if missing:
        raise RuntimeError(f"{', '.join(missing)} was not written")
    return "0.3 s of frames, sound and words"


def _verb(*words: str) -> None:
    """A verb of ours, in silence unless it fails."""
    from mmpredict import cli

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = cli.main(list(words))
    if code:
        last = said.getvalue().strip().splitlines()[-1:] or ["nothing was said"]
        raise RuntimeError(f"mmpredict {words[0]} ended with code {code}: {last[0]}")


def main(words: list[str]) -> int:
    """Try everything in the folder named; 1 if something failed. What needs a stage that failed is
    not tried."""
    for name, stage in stages(Path(words[0])).items():
        begun = time.monotonic()
        found = {"what": name}
        try:
            found["text"] = stage()
        except Exception as error:  # whatever it is, it is what we are here to find
            lines = str(error).strip().splitlines() or [""]
            found["error"] = f"{type(error).__name__}: {lines[0][:300]}"
        found["seconds"] = round(time.monotonic() - begun, 1)
        print(json.dumps(found), flush=True)
        if "error" in found and name in ("torch", "training"):
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
