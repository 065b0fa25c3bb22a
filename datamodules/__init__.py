"""One file, one LightningDataModule; recipes name them by class_path."""

from datamodules.audiovisual import AudioVisual
from datamodules.base import ClipDataModule, Loading, PackedLoader
from datamodules.documents import ClipDocuments, Documents, Skipped
from datamodules.mixture import Mixture
from datamodules.text import Text
from datamodules.world import World

__all__ = [
    "AudioVisual",
    "ClipDataModule",
    "ClipDocuments",
    "Documents",
    "Loading",
    "Mixture",
    "PackedLoader",
    "Skipped",
    "Text",
    "World",
]
