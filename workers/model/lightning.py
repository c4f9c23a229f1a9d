"""The linear-attention layers: lightning attention with a constant decay a head."""

import torch
from torch import Tensor

from kernels import group_rms_norm_gate, lightning_attention, qk_norm_rope
from workers.model.batch import Caches
from workers.model.config import LingConfig
from workers.model.linear import Normed, Shard, column_parallel, load_vector, row_parallel
from workers.model.loader import Loader
from workers.model.step import StepInputs


def log_decay(config: LingConfig, layer: int) -> Tensor:
    """Log of each head's decay a token, [heads] fp32: ALiBi's slopes, weaker the deeper the layer."""
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
        self._qkv = column_parallel(shard, [f"{prefix}.query_key_value"], 3 * channels, hidden, blocks=3)
        self._gate = column_parallel(shard, [f"{prefix}.g_proj"], channels, hidden)
        self._dense = row_parallel(shard, f"{prefix}.dense", hidden, channels)
        self._qk_norm: Tensor
        self._out_norm: Tensor

    def load(self, loader: Loader) -> None:
        """Ask for this rank's share."""
        for linear in (self._qkv, self._gate, self._dense):
            linear.load(loader)
        self._qk_norm = torch.empty(2, 1, self._dim, dtype=self._shard.dtype, device=self._shard.device)
        for out, name in zip(self._qk_norm, ("query", "key"), strict=True):
            loader.read(out[0], f"{self._prefix}.{name}_layernorm.weight", (self._dim,))
        channels = self._heads * self._dim * self._shard.size
        self._out_norm = load_vector(self._shard, loader, f"{self._prefix}.g_norm.weight", channels, split=True)

    @property
    def rounds_inputs(self) -> bool:
        """Whether any of its linears reads 8-bit floats."""
        return self._qkv.rounds_inputs or self._gate.rounds_inputs

    def __call__(self, x: Normed, caches: Caches, step: StepInputs) -> Tensor:
        """This rank's term [T, hidden] of the layer's output."""
        qkv = self._qkv(x).view(-1, 3, self._heads, self._dim)
        qk = qk_norm_rope(qkv[:, :2], self._qk_norm, *step.linear_rope, self._eps)
        q, k = qk.unbind(1)
        out = lightning_attention(q, k, qkv[:, 2], caches.state[self._cache], self._decay, step.rows)
        gated = group_rms_norm_gate(out, self._gate(x), self._out_norm, self._groups, self._eps)
        return self._dense(gated)
