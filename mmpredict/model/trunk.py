"""The trunk: a stack of layers over packed rows. In: a vector for every position. Out: what the
trunk makes of each, from its own and earlier blocks of its document only.

Shapes: B rows, L positions, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmpredict.model.cache import Cache, LayerCache
from mmpredict.model.config import PredictorConfig
from mmpredict.model.layers import Layer, LayerConfig, Rows
from mmpredict.model.norm import RMSNorm
from mmpredict.model.rotary import rotary_table
from mmpredict.model.sight import look
from mmpredict.model.stepping import SteppedLayer, SteppedTrunk, Turner
from mmpredict.schema import Batch, Layout


class Trunk(nn.Module):
    """Layers and a last norm.

    Args:
        layout: the streams.
        config: sizes and switches.
    """

    def __init__(self, layout: Layout, config: PredictorConfig) -> None:
        super().__init__()
        self.layout, self.config = layout, config
        names = tuple(s.name for s in layout.streams) if config.experts == "ffn" else ()
        self.layers = nn.ModuleList(
            Layer(
                LayerConfig(
                    dim=config.dim,
                    hidden=config.hidden_width,
                    attention=config.attention_layer,
                    fast_weights=config.fast_weights if config.has_memory(index) else None,
                    experts=names,
                    norm_eps=config.norm_eps,
                )
            )
            for index in range(config.depth)
        )
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.longest_block = max(s.positions_per_block for s in layout.streams)
        self.compiled = False

    def compile_layers(self) -> None:
        """Compile each layer for the shapes that come; all layers share one graph per shape."""
        for layer in self.layers:
            layer.compile(dynamic=None if layer.experts else False)
        self.compiled = True

    def rows(self, batch: Batch) -> Rows:
        """What the layers must know of a batch."""
        config = self.config
        sight = look(
            batch.doc_id,
            batch.block_id,
            window=config.window,
            backend=config.attention,
            static=self.compiled and self.training,
            longest_block=self.longest_block,
        )
        table = rotary_table(batch.positions, config.attention_layer.head_dim, config.rotary)
        first_BL = stream_BL = None
        members: tuple[Tensor, ...] = ()
        if config.fast_weights is not None:
            first_BL = torch.ones_like(batch.doc_id, dtype=torch.bool)
            first_BL[:, 1:] = batch.doc_id[:, 1:] != batch.doc_id[:, :-1]
        if config.experts == "ffn":
            is_stream = [batch.modality == s.modality for s in self.layout.streams]
            stream_BL = torch.stack(is_stream, -1).int().argmax(-1)  # padding: with the first
            placed = batch.placed().places.positions
            none = batch.modality.new_empty(0)
            members = tuple(placed.get(s.modality, none) for s in self.layout.streams)
        return Rows(sight, table, first_BL, stream_BL, members)

    def new_cache(self, num_rows: int, capacity: int) -> Cache:
        """An empty cache on the trunk's device, for the weights as they are now. Under autocast,
        products, keys and values have its dtype, and the weights are cast once.

        Args:
            capacity: positions per row. With a window, `window - 1` and those of one call are
                enough for rows of any length.
        """
        heads, weight = self.config.attention_layer, self.norm.weight
        shape = (2, num_rows, heads.num_kv_heads, capacity, heads.head_dim)
        dtype = weight.dtype
        if torch.is_autocast_enabled(weight.device.type):
            dtype = torch.get_autocast_dtype(weight.device.type)
        layers = []
        for layer in self.layers:
            state = None
            if layer.memory is not None:
                state = layer.memory.new_state(num_rows, weight.device)
                state = state.to(torch.promote_types(weight.dtype, torch.float32))
            room = torch.zeros(shape, dtype=dtype, device=weight.device)
            layers.append(LayerCache(room, state))
        turner = Turner(heads.head_dim, self.config.rotary, dtype, weight.device)
        steps = SteppedTrunk([SteppedLayer(layer, dtype) for layer in self.layers], turner)
        return Cache(layers, steps, self.config.window)

    def extend(  # noqa: PLR0913 - the new positions and all that is said of them
        self,
        x_BND: Tensor,
        positions_BN3: Tensor,
        cache: Cache,
        *,
        blocks: Sequence[int] | None = None,
        streams: Sequence[int] = (),
        live: Sequence[bool] | None = None,
    ) -> Tensor:
        """(B, N, D): what `forward` says of whole blocks that follow those in the cache.

        Args:
            blocks: positions of each new block, alike in all rows; None for a single block.
            streams: index of each new block's stream in the layout; needed for experts.
            live: False for rows that wait: nothing of them is kept, and what is returned for them
                means nothing.
        """
        N = x_BND.shape[1]
        blocks = (N,) if blocks is None else blocks
        step = cache.step(blocks, live)
        rows = self._rows_of_step(x_BND, blocks, streams)
        turns, x_RD = cache.trunk.turner(positions_BN3), x_BND.flatten(0, 1)
        with torch.autocast(x_BND.device.type, enabled=False):
            for layer, kept in zip(cache.trunk.layers, cache.layers, strict=True):
                x_RD = layer.extend(x_RD, rows, turns, kept, step)
            cache.advance(N, live)
            return self.norm(x_RD).view(x_BND.shape)

    def _rows_of_step(self, x_BND: Tensor, blocks: Sequence[int], streams: Sequence[int]) -> Rows:
        config, device = self.config, x_BND.device
        B, N = x_BND.shape[:2]
        first_BN = stream_BN = None
        members: tuple[Tensor, ...] = ()
        if config.fast_weights is not None:
            first_BN = torch.zeros(B, N, dtype=torch.bool, device=device)  # the state is told
        if config.experts == "ffn":
            stream_N = torch.tensor(streams, device=device)
            stream_N = stream_N.repeat_interleave(torch.tensor(blocks, device=device))
            stream_BN = stream_N.expand(B, N)
            flat = stream_BN.flatten()
            members = tuple((flat == n).nonzero()[:, 0] for n in range(len(self.layout.streams)))
        return Rows(None, None, first_BN, stream_BN, members)

    def forward(self, x_BLD: Tensor, batch: Batch) -> Tensor:
        """(B, L, D)."""
        rows = self.rows(batch)
        saves_memory = self.config.checkpoint_activations and self.training
        for layer in self.layers:
            # Scoring comes in other shapes; it is not worth a graph of its own.
            run = layer if self.training else layer.forward
            if saves_memory and torch.is_grad_enabled():
                x_BLD = checkpoint(run, x_BLD, rows, use_reentrant=False)
            else:
                x_BLD = run(x_BLD, rows)
        return self.norm(x_BLD)
