"""One file, one LightningDataModule; recipes name them by class_path."""

from datamodules.base import ClipDataModule, Documents, Loading, PackedLoader, Skipped
from datamodules.world import World

__all__ = ["ClipDataModule", "Documents", "Loading", "PackedLoader", "Skipped", "World"]
