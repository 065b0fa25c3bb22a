"""An exported folder to a model hub and back, through huggingface_hub's own mixin.

In: a folder that `write_folder` wrote, or the name of a repository. Out: a repository with the same
files, or a Loaded. A token is never asked for here: huggingface_hub finds the user's own.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, snapshot_download

from mmpredict.exported.folder import is_export, read_folder
from mmpredict.exported.loaded import Loaded
from mmpredict.schema import UserError

PATTERNS = ["*.json", "*.safetensors", "*.yaml", "*.md"]  # nothing that could run code


class HubFolder(ModelHubMixin):
    """An export as huggingface_hub handles models: `push_to_hub`, `save_pretrained`.

    Args:
        folder: an export.
    """

    def __init__(self, folder: str | Path) -> None:
        if not is_export(folder):
            raise UserError(f"{folder} is no folder that mmpredict export wrote")
        self.folder = Path(folder)

    def _save_pretrained(self, save_directory: Path) -> None:
        """The mixin's hook: all files as they are, model card and config.json included."""
        for path in sorted(self.folder.iterdir()):
            if path.is_file() and any(path.match(pattern) for pattern in PATTERNS):
                shutil.copyfile(path, save_directory / path.name)


def push(folder: str | Path, name: str, *, private: bool = True) -> str:
    """Upload an export to the repository `name` ("owner/model"); the address of the commit."""
    message = "Upload with mmpredict export"
    return str(HubFolder(folder).push_to_hub(name, private=private, commit_message=message))


def load_from_hub(name: str, *, revision: str | None = None, **choices: Any) -> Loaded:
    """Download an export (safetensors, JSON and text alone) and load it.

    Args:
        name: "owner/model".
        revision: a commit, so that the files are the same the next time.
        choices: further arguments of huggingface_hub.snapshot_download.
    """
    folder = snapshot_download(name, revision=revision, allow_patterns=PATTERNS, **choices)
    return Loaded.of(*read_folder(folder))
