"""One decoder layer: linear or latent attention, then a dense or sparse feed-forward block."""

from torch import Tensor

from kernels import add_rms_norm, add_rms_norm_quantized
from workers.model.batch import Caches
from workers.model.lightning import LightningAttention
from workers.model.linear import Normed, Shard, load_vector
from workers.model.loader import Loader
from workers.model.mla import LatentAttention
from workers.model.mlp import Mlp, Moe
from workers.model.step import StepInputs


class DecoderLayer:
    """Two all-reduces: after attention, and after the feed-forward block."""

    def __init__(self, shard: Shard, layer: int) -> None:
        config = shard.config
        self._shard = shard
        self._prefix = f"model.layers.{layer}"
        self._eps = config.rms_norm_eps
        self.attention: LatentAttention | LightningAttention = (
            LatentAttention(shard, layer) if config.is_mla(layer) else LightningAttention(shard, layer)
        )
        mlp = f"{self._prefix}.mlp"
        dense = layer < config.first_k_dense_replace
        self._mlp: Mlp | Moe = Mlp(shard, mlp, config.intermediate_size) if dense else Moe(shard, mlp)
        self._in_norm: Tensor
        self._mlp_norm: Tensor

    def load(self, loader: Loader) -> None:
        """Ask for this rank's share."""
        self.attention.load(loader)
        self._mlp.load(loader)
        hidden = self._shard.config.hidden_size
        self._in_norm = load_vector(self._shard, loader, f"{self._prefix}.input_layernorm.weight", hidden)
        post = f"{self._prefix}.post_attention_layernorm.weight"
        self._mlp_norm = load_vector(self._shard, loader, post, hidden)

    def count_experts(self, counts: Tensor | None) -> None:
        """Add to `counts` [experts] how many tokens choose each expert of a sparse layer; None turns counting off."""
        if isinstance(self._mlp, Moe):
            self._mlp.counts = counts

    def __call__(self, x: Tensor, residual: Tensor, caches: Caches, step: StepInputs) -> tuple[Tensor, Tensor]:
        """Take and return (the layer's contribution, the stream to add it to), both [T, hidden]."""
        all_reduce = self._shard.collectives.all_reduce
        normed, residual = self._add_norm(x, residual, self._in_norm, self.attention.rounds_inputs)
        attended = all_reduce(self.attention(normed, caches, step))
        normed, residual = self._add_norm(attended, residual, self._mlp_norm, self._mlp.rounds_inputs)
        return all_reduce(self._mlp(normed)), residual

    def _add_norm(self, x: Tensor, residual: Tensor, weight: Tensor, rounded: bool) -> tuple[Normed, Tensor]:
        if not rounded:
            normed, total = add_rms_norm(x, residual, weight, self._eps)
            return Normed(normed), total
        normed, total, q, scale = add_rms_norm_quantized(x, residual, weight, self._eps)
        return Normed(normed, (q, scale)), total
