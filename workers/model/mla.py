"""Multi-head latent attention (DeepSeek-V2): one latent per token, from which every head makes its key and value."""

from torch import Tensor

from kernels import latent_attention, norm_rope_write_latent
from workers.model.batch import Caches
from workers.model.formats import Part
from workers.model.joined import Joined
from workers.model.linear import Linear, Normed, Shard, column_parallel, column_parts, load_vector, row_parallel
from workers.model.loader import Loader
from workers.model.step import StepInputs


class LatentAttention:
    """One layer's heads on this rank; the latent is the same on all ranks."""

    def __init__(self, shard: Shard, layer: int) -> None:
        config = shard.config
        self._shard = shard
        self._prefix = prefix = f"model.layers.{layer}.attention"
        self._eps = config.rms_norm_eps
        self._cache = config.cache_index(layer)
        self._rank = config.kv_lora_rank
        self._nope, self._rope, self._v = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        grown = config.yarn.on_softmax if config.yarn is not None else 1.0
        self._scale = grown * (self._nope + self._rope) ** -0.5
        self._q_rank = config.q_lora_rank
        heads, hidden, latent = config.num_attention_heads, config.hidden_size, config.latent_width
        self._heads = heads // shard.size

        q_size = heads * (self._nope + self._rope)
        if self._q_rank is None:
            queries = column_parts(shard, [f"{prefix}.q_proj"], q_size, hidden)
            self._q_b: Linear | None = None
        else:
            queries = [Part(f"{prefix}.q_a_proj", (self._q_rank, hidden))]
            self._q_b = column_parallel(shard, [f"{prefix}.q_b_proj"], q_size, self._q_rank)
        self._in = Joined(shard, queries, [Part(f"{prefix}.kv_a_proj_with_mqa", (latent, hidden))])
        self._kv_b = column_parallel(shard, [f"{prefix}.kv_b_proj"], heads * (self._nope + self._v), self._rank)
        self._dense = row_parallel(shard, f"{prefix}.dense", hidden, heads * self._v)
        self._q_norm: Tensor | None = None
        self._kv_norm: Tensor
        self._kv: Tensor

    def load(self, loader: Loader) -> None:
        """Ask for this rank's share."""
        self._in.load(loader)
        if self._q_b is not None and self._q_rank is not None:
            self._q_norm = self._norm(loader, "q_a_layernorm", self._q_rank)
            self._q_b.load(loader)
        self._kv_b.load(loader)
        self._dense.load(loader)
        self._kv_norm = self._norm(loader, "kv_a_layernorm", self._rank)
        loader.after(self._see_kv)

    def _see_kv(self) -> None:
        """View kv_b by heads, [heads, nope + v, rank], without a copy unless it is quantized."""
        self._kv = self._kv_b.dense().view(self._heads, self._nope + self._v, self._rank)

    def _norm(self, loader: Loader, name: str, size: int) -> Tensor:
        return load_vector(self._shard, loader, f"{self._prefix}.{name}.weight", size)

    @property
    def rounds_inputs(self) -> bool:
        """Whether any of its linears reads 8-bit floats."""
        return self._in.rounds_inputs

    def __call__(self, x: Normed, caches: Caches, step: StepInputs) -> Tensor:
        """Compute this rank's term [T, hidden] of the layer's output."""
        pool = caches.latent[self._cache]
        place = step.pages.write_at
        queries = norm_rope_write_latent(
            pool, self._in(x), self._q_norm, self._kv_norm, *step.mla_rope, place, self._eps
        )
        if self._q_b is not None:
            queries = self._q_b(queries)
        heads = queries.view(-1, self._heads, self._nope + self._rope)
        values = latent_attention(heads, *step.mla_rope, pool, self._kv, self._scale, step.forms)
        return self._dense(values.flatten(1))
