"""A checkpoint as a model of lmms-eval: questions about pictures, videos and sounds. In: its
requests. Out: the loss of an answer and whether it is the greedy one; continuations.

The harness finds models by Python entry points of the group `lmms_eval.models`. In the pyproject of
a package of your own, or of a fork of this one:

    [project.entry-points."lmms_eval.models"]
    mmpredict = "mmpredict.integrations.lmms_eval:manifest"

then `python -m lmms_eval --model mmpredict --model_args checkpoint=last.ckpt --tasks ...`.

Unlike in lm-evaluation-harness, the first number of `loglikelihood` is a loss: the harness takes
the choice with the least.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from mmpredict.generate import rollout
from mmpredict.integrations.texts import Texts
from mmpredict.media import read_clip
from mmpredict.model import Predictor
from mmpredict.probes.evidence import Shown, question_and_answer
from mmpredict.probes.likelihood import Ask, Likelihood
from mmpredict.schema import Clip, Modality, UserError
from mmpredict.tokens import Codecs

try:  # the harness wants its models to inherit from its own class
    from lmms_eval.api.model import lmms
except ImportError:
    lmms = object

_MOST = 64  # tokens that are generated where a task does not say


class Request(Protocol):
    """An Instance of the harness; only this is read."""

    args: tuple[Any, ...]


class MMPredictLMMS(lmms):
    """Pictures, video, sound and text of a checkpoint.

    Args:
        checkpoint: written by `mmpredict fit`.
        device: where it works.
        batch_size: questions are asked one at a time, so only 1 is taken.
        loaded: predictor, encoders and context length, in place of a checkpoint.

    Attributes:
        task_dict: task -> split -> documents; the harness fills it.

    Raises:
        UserError: the checkpoint has no text, or a batch size is asked for.
    """

    is_simple = True

    def __init__(
        self,
        checkpoint: str = "",
        device: str | None = None,
        batch_size: int | str = 1,
        *,
        loaded: tuple[Predictor, Codecs, int] | None = None,
    ) -> None:
        super().__init__()
        if str(batch_size) != "1":
            raise UserError(f"batch_size={batch_size}: questions are asked one at a time; take 1")
        if loaded is None:
            from mmpredict.training.checkpoint import load_predictor

            predictor, codecs, about = load_predictor(checkpoint)
            loaded = predictor.to(device or "cpu"), codecs, int(about["context_length"])
        self.predictor, self.codecs, self.context_length = loaded
        Texts(*loaded)  # says so where there is no text
        self.likelihood = Likelihood(self.predictor, self.codecs)
        self.task_dict: dict[str, Any] = {}

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """(-log P of the answer, END included, in nats; whether it is the greedy one)."""
        found = []
        for request in requests:
            context, target, visual, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            answer = target if isinstance(target, str) else str(target(doc))
            clip = clip_of(visual(doc), self.codecs)
            said = self.likelihood.said(self._shown(clip), [Ask(context, (answer,))])[0][0]
            greedy = self._generated(clip, context, said.tokens) == answer
            found.append((-said.log_p, greedy))
        return found

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """The greedy continuation of each question, cut where a stop text begins."""
        found = []
        for request in requests:
            context, settings, visual, doc_id, task, split = request.args
            clip = clip_of(visual(self.task_dict[task][split][doc_id]), self.codecs)
            said = self._generated(clip, context, int(settings.get("max_new_tokens", _MOST)))
            until = settings.get("until") or []
            stops = [until] if isinstance(until, str) else until
            cuts = [said.index(stop) for stop in stops if stop and stop in said]
            found.append(said[: min(cuts)] if cuts else said)
        return found

    def generate_until_multi_round(self, requests: Sequence[Request]) -> list[str]:
        """Rounds of questions are not offered.

        Raises:
            UserError: always.
        """
        raise UserError("questions in several rounds are not offered; choose other tasks")

    def _shown(self, clip: Clip) -> Shown:
        streams = tuple(t for t in self.codecs.encode(clip) if len(t.end_s))
        return Shown(streams, _end_of(clip))

    def _generated(self, clip: Clip, context: str, most: int) -> str:
        """The greedy words after clip and question, up to the end of the piece."""
        asked, _ = question_and_answer(Shown((), _end_of(clip)), context, "")
        prompt = Clip(
            clip.frames_TCHW,
            clip.times_s,
            clip.waveform_CS,
            clip.sample_rate,
            clip.waveform_start_s,
            texts=asked,
        )
        gone_on = rollout(
            self.predictor,
            self.codecs,
            prompt,
            seconds=1.0,  # without meaning where only text goes on
            streams=("text",),
            text_temperature=0.0,
            context_length=self.context_length,
            max_tokens=most,
        )
        ids = [
            i for t in gone_on.tokens if t.modality == Modality.TEXT for i in t.contents.tolist()
        ]
        end = self.codecs.text.end_id
        return self.codecs.text.text_of(ids[: ids.index(end)] if end in ids else ids)


def clip_of(visuals: Sequence[Any] | None, codecs: Codecs) -> Clip:
    """What a task shows, in the form that the encoders take: pictures one after another, or one
    video, and at most one sound.

    Args:
        visuals: pictures (as PIL has them), paths of videos, {"array", "sampling_rate"} of sounds.
        codecs: the checkpoint's encoders.

    Raises:
        UserError: the checkpoint cannot see or hear what is shown, or it is none of these.
        MediaError: a video cannot be read.
    """
    video, audio, clip = codecs.video, codecs.audio, Clip()
    pictures = [v for v in visuals or () if hasattr(v, "convert")]
    paths = [v for v in visuals or () if isinstance(v, str)]
    sounds = [v for v in visuals or () if isinstance(v, dict) and "array" in v]
    strange = len(visuals or ()) - len(pictures) - len(paths) - len(sounds)
    if strange or len(paths) > 1 or len(sounds) > 1 or (paths and pictures):
        raise UserError(
            f"shown are {len(pictures)} pictures, {len(paths)} videos, {len(sounds)} sounds and "
            f"{strange} other things; a question takes pictures or one video, and one sound"
        )
    if (pictures or paths) and video is None or sounds and audio is None:
        raise UserError("the task shows what this checkpoint has no stream for; choose text tasks")
    if paths:
        clip = read_clip(paths[0], fps=video.fps, size=video.height_width, sound=False)
    if pictures:
        frames = torch.stack([_pixels(picture, video.height_width) for picture in pictures])
        clip = Clip(frames, torch.arange(len(frames)).double() / video.fps)
    if sounds:
        wave_CS = _wave(sounds[0], audio.sample_rate, audio.channels)
        clip = Clip(clip.frames_TCHW, clip.times_s, wave_CS, audio.sample_rate)
    return clip


def manifest() -> Any:
    """What the entry point gives to the harness."""
    from lmms_eval.models.registry_v2 import ModelManifest

    path = f"{MMPredictLMMS.__module__}.{MMPredictLMMS.__qualname__}"
    return ModelManifest(model_id="mmpredict", simple_class_path=path)


def _pixels(picture: Any, size: tuple[int, int]) -> torch.Tensor:
    """(3, H, W) uint8, resized until it covers the size and cut around the centre."""
    height, width = size
    rgb = picture.convert("RGB")
    scale = max(width / rgb.width, height / rgb.height)
    rgb = rgb.resize((max(width, round(rgb.width * scale)), max(height, round(rgb.height * scale))))
    left, top = (rgb.width - width) // 2, (rgb.height - height) // 2
    rgb = rgb.crop((left, top, left + width, top + height))
    return (
        torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
        .reshape(height, width, 3)
        .permute(2, 0, 1)
    )


def _wave(sound: dict[str, Any], rate: int, channels: int) -> torch.Tensor:
    """(channels, S) at `rate`; one channel is repeated, more are mixed down or cut."""
    from torchaudio.functional import resample

    wave = torch.as_tensor(sound["array"], dtype=torch.float32)
    wave_CS = wave[None] if wave.ndim == 1 else wave
    wave_CS = resample(wave_CS, int(sound["sampling_rate"]), rate)
    if channels == 1:
        return wave_CS.mean(0, keepdim=True)
    return wave_CS.expand(channels, -1) if len(wave_CS) == 1 else wave_CS[:channels]


def _end_of(clip: Clip) -> float | None:
    """When the last frame has been shown and the last sound heard; None where there is neither."""
    ends = []
    if clip.frames_TCHW is not None and len(clip.times_s):
        times = clip.times_s
        ends.append(float(times[-1] + (times[-1] - times[-2] if len(times) > 1 else 0.0)))
    if clip.waveform_CS is not None:
        ends.append(clip.waveform_CS.shape[1] / clip.sample_rate)
    return max(ends, default=None)
