"""Clip to Tokens and back, one file per modality."""

from mmpredict.tokens.audio import MelChunks
from mmpredict.tokens.codecs import Codecs
from mmpredict.tokens.series import Vectors
from mmpredict.tokens.text import TextTokens
from mmpredict.tokens.video import Patches

__all__ = ["Codecs", "MelChunks", "Patches", "TextTokens", "Vectors"]
