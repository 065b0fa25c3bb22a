"""One file, one LightningDataModule; recipes name them by class_path."""

from datamodules.atari import Atari
from datamodules.audiovisual import AudioVisual
from datamodules.base import ClipDataModule
from datamodules.cucumber import Cucumber, Speech
from datamodules.doom import Doom
from datamodules.feed.documents import ClipDocuments, Documents, Skipped
from datamodules.feed.loader import PackedLoader
from datamodules.feed.loading import Loading
from datamodules.lerobot import LeRobot
from datamodules.mixture import Mixture
from datamodules.parquet import Parquet
from datamodules.recall import Recall
from datamodules.shards import Shards
from datamodules.text import Text
from datamodules.webdataset import WebDataset
from datamodules.world import World

__all__ = [
    "Atari",
    "AudioVisual",
    "ClipDataModule",
    "ClipDocuments",
    "Cucumber",
    "Documents",
    "Doom",
    "LeRobot",
    "Loading",
    "Mixture",
    "PackedLoader",
    "Parquet",
    "Recall",
    "Shards",
    "Skipped",
    "Speech",
    "Text",
    "WebDataset",
    "World",
]
