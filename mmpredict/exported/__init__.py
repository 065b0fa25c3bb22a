"""An exported predictor: a folder of safetensors and JSON, from which it comes back bit for bit."""

from mmpredict.exported.folder import FORMAT, is_export, read_folder, write_folder
from mmpredict.exported.loaded import Loaded

__all__ = ["FORMAT", "Loaded", "is_export", "read_folder", "write_folder"]
