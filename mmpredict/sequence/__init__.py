"""Tokens to packed rows and back: who stands where, and what each position must predict."""

from mmpredict.sequence.order import (
    blocks_between,
    first_blocks,
    interleave,
    separate,
    split_blocks,
)
from mmpredict.sequence.packing import BestFit, pack, unpack

__all__ = [
    "BestFit",
    "blocks_between",
    "first_blocks",
    "interleave",
    "pack",
    "separate",
    "split_blocks",
    "unpack",
]
