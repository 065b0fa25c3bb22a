"""mmpredict: one causal predictor, one embedding space, three kinds of things to predict.

Nothing heavy is imported here: `mmpredict --help` must answer at once. Import the rooms by name,
for example `from mmpredict.model import Predictor`.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmpredict.exported import Loaded

__version__ = "0.1.0"


def load(path: str | PathLike[str]) -> Loaded:
    """A trained predictor and its encoders, from the folder of an export or from a checkpoint.

    Raises:
        ValueError: it is a URL, damaged, or of another version.
        FileNotFoundError: there is nothing of that name.
    """
    from mmpredict.exported import Loaded, is_export, read_folder

    if is_export(path):
        found = read_folder(path)
    else:
        from mmpredict.training.checkpoint import load_predictor

        found = load_predictor(path)
    return Loaded.of(*found)
