"""Compiling functions of blocks, of which every batch has another number.

In: a function of tensors. Out: the same, as one graph for any number of blocks. All other sizes are
taken as they come: over sizes that it knows, a compiler writes loops of vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch


def for_any_number(function: Callable[..., Any], blocks: Mapping[int, int]) -> Callable[..., Any]:
    """`function`, compiled; to be called with positional arguments. Where no gradients are asked
    (scoring, sampling, counting operations) it runs as it is: that comes in other shapes, and is
    not worth a graph of its own.

    Give a method as it stands in its class, with the module as the first argument: a bound one
    would keep computing with the weights of this module in copies of it.

    Args:
        blocks: the arguments that hold blocks, by their place, and the dimension along which blocks
            stand in each. Arguments that are None are left alone.
    """
    compiled = torch.compile(function)

    def run(*arguments: Any) -> Any:
        if not torch.is_grad_enabled():
            return function(*arguments)
        for place, dim in blocks.items():
            if arguments[place] is not None:
                torch._dynamo.maybe_mark_dynamic(arguments[place], dim)
        return compiled(*arguments)

    return run
