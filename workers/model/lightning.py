"""The linear-attention layers: lightning attention with a constant decay for each head."""

import torch
from torch import Tensor

from kernels import Rows, lightning_commit, lightning_layer, lightning_layer_verify
from workers.model.batch import Caches
from workers.model.config import LingConfig
from workers.model.joined import Joined
from workers.model.linear import Normed, Shard, column_parts, load_vector, row_parallel
from workers.model.loader import Loader
from workers.model.step import StepInputs


def log_decay(config: LingConfig, layer: int) -> Tensor:
    """The log of each head's decay per token, [heads] fp32: ALiBi's slopes, which get weaker in deeper layers."""
    heads = config.num_attention_heads
    slopes = 2.0 ** (-8.0 * (torch.arange(heads, dtype=torch.float64) + 1) / heads)
    return (-slopes * (1 - layer / (config.num_hidden_layers - 1) + 1e-5)).float()


class LightningAttention:
    """One layer's heads on this rank."""

    def __init__(self, shard: Shard, layer: int) -> None:
        config = shard.config
        channels, hidden = config.num_attention_heads * config.head_dim, config.hidden_size
        prefix = f"model.layers.{layer}.attention"
        self._shard = shard
        self._prefix = prefix
        self._eps = config.rms_norm_eps
        self._groups = config.group_norm_size // shard.size
        self._heads, _, self._dim = config.state_shape(shard.size)
        self._cache = config.cache_index(layer)
        self._decay = log_decay(config, layer)[shard.share(config.num_attention_heads)].to(shard.device)
        self._in = Joined(
            shard,
            column_parts(shard, [f"{prefix}.query_key_value"], 3 * channels, hidden, blocks=3),
            column_parts(shard, [f"{prefix}.g_proj"], channels, hidden),
        )
        self._dense = row_parallel(shard, f"{prefix}.dense", hidden, channels)
        self._qk_norm: Tensor
        self._out_norm: Tensor

    def load(self, loader: Loader) -> None:
        """Ask for this rank's share."""
        self._in.load(loader)
        self._dense.load(loader)
        self._qk_norm = torch.empty(2, 1, self._dim, dtype=self._shard.dtype, device=self._shard.device)
        for out, name in zip(self._qk_norm, ("query", "key"), strict=True):
            loader.read(out[0], f"{self._prefix}.{name}_layernorm.weight", (self._dim,))
        channels = self._heads * self._dim * self._shard.size
        self._out_norm = load_vector(self._shard, loader, f"{self._prefix}.g_norm.weight", channels, split=True)

    @property
    def rounds_inputs(self) -> bool:
        """Whether any of its linears reads 8-bit floats."""
        return self._in.rounds_inputs

    def __call__(self, x: Normed, caches: Caches, step: StepInputs) -> Tensor:
        """Compute this rank's term [T, hidden] of the layer's output."""
        projected = self._in(x).view(-1, 4, self._heads, self._dim)
        rows, state = step.linear, caches.state[self._cache]
        gated = []
        if rows.verified is not None:
            assert caches.verified is not None, "these caches were made without room for drafts"
            keys, values = (part[self._cache] for part in caches.verified)
            gated.append(
                lightning_layer_verify(
                    projected[: rows.tokens],
                    self._qk_norm,
                    self._out_norm,
                    step.linear_rope[0][: rows.tokens],
                    step.linear_rope[1][: rows.tokens],
                    self._groups,
                    self._eps,
                    state,
                    self._decay,
                    rows.verified,
                    keys,
                    values,
                )
            )
        if rows.plain is not None:
            gated.append(
                lightning_layer(
                    projected[rows.tokens :],
                    self._qk_norm,
                    self._out_norm,
                    step.linear_rope[0][rows.tokens :],
                    step.linear_rope[1][rows.tokens :],
                    self._groups,
                    self._eps,
                    state,
                    self._decay,
                    rows.plain,
                )
            )
        return self._dense(gated[0] if len(gated) == 1 else torch.cat(gated))

    def commit(self, rows: Rows, accepted: Tensor, caches: Caches) -> None:
        """Advance the states of the latest verified rows by their accepted tokens, [B] of the first ones."""
        assert caches.verified is not None, "these caches were made without room for drafts"
        tokens = sum(rows.counts)
        keys, values = (part[self._cache, :tokens] for part in caches.verified)
        lightning_commit(keys, values, caches.state[self._cache], self._decay, rows, accepted)
