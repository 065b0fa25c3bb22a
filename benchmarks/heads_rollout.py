"""24 frames on from 8: does the world still hold together? Batched, with a cache, by the clock.

Prompts are 8 frames with their sound and no text; the predictor goes on in frames and sound, each
block drawn from its head at temperature 1. What is judged: whether a frame is still explained by
its objects (`heads_validity`), and how far they are from where they should be.
Shapes: B prompts, L positions, P positions of a block, D values, F frames, H W pixels, N objects.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from heads_data import FPS, PROMPT_FRAMES, ROLLED_FRAMES, Data, Prompt
from heads_validity import Template, blurred
from torch import Tensor

from mmpredict.model import Predictor
from mmpredict.model.fsq import BlockTokenizer
from mmpredict.schema import Batch, Modality, StreamSpec, Tokens
from mmpredict.sequence import interleave, pack
from mmpredict.tokens.video import unpatchify

JUDGED = (4, 8, 16, 24)  # frames after the prompt
THRESHOLD = 0.1  # of the misfit, above which a frame is not valid (see `calibrate`)
NOISE = 6.0  # grey levels
SEEN = 0.5  # least visible share of every object in the true frame
GHOST_M = 0.7  # m: more than most objects are wide
STEPS = 10
VIDEO, AUDIO = int(Modality.VIDEO), int(Modality.AUDIO)
Scores = dict[str, list[float]]


class _Rolling:
    """Rows of equal length that grow block by block.

    Args:
        model: says what comes next.
        data: prompts.
        seed: of the noise.
    """

    def __init__(self, model: Predictor, data: Data, seed: int) -> None:
        self.model, self.specs = model, {s.modality: s for s in data.layout.streams if s.period_s}
        self.generator = torch.Generator().manual_seed(seed)
        self.rows = _empty_rows(data)
        B, L = self.rows.modality.shape
        self.values = {
            VIDEO: torch.stack([p.frames_TPD for p in data.prompts]).clone(),
            AUDIO: torch.stack([p.chunks_KPD for p in data.prompts]).clone(),
        }
        self.done = {VIDEO: PROMPT_FRAMES, AUDIO: 0}
        self.hidden_BLD = torch.zeros(B, L, model.config.dim)
        self.cache = model.trunk.new_cache(B, L)

    @torch.no_grad()
    def run(self) -> Tensor:
        """(B, F, P, D) patches of the frames after the prompt."""
        number_L = self.rows.block_id[0]
        kind_L = self.rows.modality[0]
        starts = torch.cat([torch.tensor([0]), number_L.diff().nonzero()[:, 0] + 1]).tolist()
        ends = [*starts[1:], len(number_L)]
        frames = [k for k, start in enumerate(starts) if kind_L[start] == VIDEO]
        first = frames[PROMPT_FRAMES]
        self.done[AUDIO] = sum(int(kind_L[start]) == AUDIO for start in starts[:first])
        lengths = [stop - start for start, stop in zip(starts, ends, strict=True)]
        self._read(0, starts[first], lengths[:first])
        for start, stop in zip(starts[first:], ends[first:], strict=True):
            self._draw(self.specs[int(kind_L[start])], start, stop)
            self._read(start, stop, [stop - start])
        return self.values[VIDEO][:, PROMPT_FRAMES:]

    def _read(self, start: int, stop: int, lengths: list[int]) -> None:
        """Let the trunk see positions `start` to `stop`."""
        part = replace(self.rows, contents={}).map(lambda x: x[:, start:stop])
        contents = {}
        for modality, spec in self.specs.items():
            count = int((part.modality[0] == modality).sum()) // spec.positions_per_block
            if count:
                last = self.done[modality]
                contents[modality] = self.values[modality][:, last - count : last].flatten(0, 2)
        part = replace(part, contents=contents)
        x_BND = self.model.embed(part)
        self.hidden_BLD[:, start:stop] = self.model.trunk.extend(
            x_BND, part.positions, self.cache, blocks=lengths
        ).float()

    def _draw(self, spec: StreamSpec, start: int, stop: int) -> None:
        """Draw the block at these positions."""
        model, modality = self.model, spec.modality
        alone = torch.full_like(self.rows.modality, -1)
        alone[:, start:stop] = modality
        z = model.condition(replace(self.rows, modality=alone), self.hidden_BLD, modality)
        scale, number = model.embed.standardise[spec.name], self.done[modality]
        previous = scale(self.values[modality][:, number - 1])
        block = model.heads[spec.name].sample(z, previous, steps=STEPS, generator=self.generator)[0]
        values = scale.inverse(block.float()).clamp(*spec.value_range)
        values = values if spec.dtype.is_floating_point else values.round()
        self.values[modality][:, number] = values.to(spec.dtype)
        self.done[modality] += 1


def _empty_rows(data: Data) -> Batch:
    """One row a prompt with the positions of all frames and chunks up to the last frame."""
    frames, streams = PROMPT_FRAMES + ROLLED_FRAMES, []
    for spec in data.layout.streams:
        if spec.period_s:
            offset = spec.period_s if spec.fills_period else 0.0
            blocks = int(((frames - 1) / FPS + 1e-6) / spec.period_s) + (not spec.fills_period)
            end_s = offset + spec.period_s * torch.arange(blocks).double()
            shape = (blocks, spec.positions_per_block, spec.width)
            streams.append(Tokens(spec.modality, torch.zeros(shape, dtype=spec.dtype), end_s))
    row = interleave(streams, data.layout)
    return pack([[row]] * len(data.prompts), row.modality.shape[1])


def roll_out(model: Predictor, data: Data, seed: int) -> np.ndarray:
    """(B, F, H, W, 3) uint8 frames that follow the prompts."""
    rolling = _Rolling(model, data, seed)
    with torch.autocast("cpu", torch.bfloat16):
        patches = rolling.run()
    return _frames_of(data, patches)


def _frames_of(data: Data, patches_BFPD: Tensor) -> np.ndarray:
    video = data.codecs.video
    frames = unpatchify(patches_BFPD.flatten(0, 1), video.patch, video.height_width)
    return frames.unflatten(0, patches_BFPD.shape[:2]).permute(0, 1, 3, 4, 2).numpy()


def templates(data: Data) -> list[Template]:
    return [Template(prompt.scene, data.size) for prompt in data.prompts]


def judge(frames_BFHWC: np.ndarray, data: Data, fits: list[Template]) -> Scores:
    """Per prompt and frame of JUDGED: misfit, and how far objects are from the truth (mean, m).

    NaN where something hides more than half of an object in the true frame: what cannot be seen
    there cannot be judged.
    """
    chosen, scores = [frame - 1 for frame in JUDGED], {}
    for frames, prompt, template in zip(frames_BFHWC, data.prompts, fits, strict=True):
        fit = template.fit(frames[chosen])
        error_F = _place_error(fit.place_FN2, prompt, chosen)
        seen_TN = prompt.truth.truth.visible_TN
        for k, frame in enumerate(JUDGED):
            hidden = float(seen_TN[PROMPT_FRAMES + chosen[k]].min()) < SEEN
            for name, value in (("misfit", fit.misfit_F[k]), ("place_error_m", error_F[k])):
                known = float("nan") if hidden else float(value)
                scores.setdefault(f"{name}/{frame}", []).append(known)
    return scores


def _place_error(place_FN2: np.ndarray, prompt: Prompt, chosen: list[int]) -> np.ndarray:
    """(F,) distance of the objects from their true places, averaged over them."""
    place_TN3 = prompt.truth.truth.position_TN3.numpy()
    true_FN2 = place_TN3[[PROMPT_FRAMES + index for index in chosen], :, :2]
    return np.linalg.norm(place_FN2 - true_FN2, axis=-1).mean(-1)


def true_frames(data: Data) -> np.ndarray:
    """(B, F, H, W, 3) what really follows the prompts."""
    clips = [p.truth.clip.frames_TCHW[PROMPT_FRAMES:] for p in data.prompts]
    return torch.stack(clips).permute(0, 1, 3, 4, 2).numpy()


@torch.no_grad()
def recoded_frames(data: Data, tokenizer: BlockTokenizer) -> np.ndarray:
    """The truth as the discrete arm could say it at best: in codes, and back."""
    patches = torch.stack([p.frames_TPD[PROMPT_FRAMES:] for p in data.prompts]).flatten(0, 1)
    values = (patches.float() - tokenizer.mean_D) / tokenizer.std_D
    again = tokenizer.decode(tokenizer.encode(values)) * tokenizer.std_D + tokenizer.mean_D
    patches = again.clamp(0, 255).round().to(torch.uint8)
    return _frames_of(data, patches.unflatten(0, (len(data.prompts), -1)))


def copied_frames(data: Data) -> np.ndarray:
    """The last frame of the prompt again and again: always valid, and soon wrong."""
    return np.repeat(_last_frames(data)[:, None], ROLLED_FRAMES, 1)


def _last_frames(data: Data) -> np.ndarray:
    clips = [p.truth.clip.frames_TCHW[PROMPT_FRAMES - 1] for p in data.prompts]
    return torch.stack(clips).permute(0, 2, 3, 1).numpy()


def calibrate(data: Data, fits: list[Template]) -> dict[str, float]:
    """Share of frames called valid: of such as must be, and of such as must not."""
    true = true_frames(data)
    noise = np.random.default_rng(0).normal(0, NOISE, true.shape)
    radius = 1.5 * data.size / 32
    # A ghost: half the true frame and half the prompt's last, where something has moved far.
    mixed = (true.astype(np.float32) + _last_frames(data)[:, None]) / 2
    moved = np.array([_moved(prompt) for prompt in data.prompts]).T > GHOST_M  # as misfit below
    kinds = {
        "true": true,
        f"true with noise of {NOISE:g} grey levels": np.clip(true + noise, 0, 255),
        f"blurred by {radius:g} px": np.stack([blurred(frames, radius) for frames in true]),
        "two half ghosts": mixed,
        "empty room": np.stack([np.repeat(t.background[None], ROLLED_FRAMES, 0) for t in fits]),
    }
    found = {}
    for name, frames in kinds.items():
        scores = judge(frames, data, fits)
        misfit = np.array([scores[f"misfit/{frame}"] for frame in JUDGED])
        judged = ~np.isnan(misfit) & (moved if mixed is frames else True)
        found[name] = float((misfit[judged] <= THRESHOLD).mean())
    return found


def _moved(prompt: Prompt) -> list[float]:
    """How far some object is from where the prompt left it, at every frame of JUDGED, m."""
    place_TN3 = prompt.truth.truth.position_TN3
    away_TN = (place_TN3 - place_TN3[PROMPT_FRAMES - 1]).norm(dim=-1)
    return [float(away_TN[PROMPT_FRAMES - 1 + frame].max()) for frame in JUDGED]
