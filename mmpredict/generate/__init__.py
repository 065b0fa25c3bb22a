"""The way back: a predictor and a prompt to a Clip that goes on, and that Clip to files."""

from mmpredict.generate.render import strip, write_rollout
from mmpredict.generate.rollout import Rollout, rollout, rollouts
from mmpredict.media import write_wav

__all__ = ["Rollout", "rollout", "rollouts", "strip", "write_rollout", "write_wav"]
