"""Feed-forward blocks: one dense MLP, or routed experts with a shared one."""

import torch.nn.functional as F
from torch import Tensor

from kernels import route, swiglu
from workers.model.formats import Experts, Part, load_experts
from workers.model.linear import Shard, column_parallel, load_vector, row_parallel
from workers.model.weights import Checkpoint


class Mlp:
    """SwiGLU MLP, its inner width split over the ranks."""

    def __init__(self, shard: Shard, prefix: str, width: int) -> None:
        hidden = shard.config.hidden_size
        self._gate_up = column_parallel(shard, [f"{prefix}.gate_proj", f"{prefix}.up_proj"], width, hidden)
        self._down = row_parallel(shard, f"{prefix}.down_proj", hidden, width)

    def load(self, checkpoint: Checkpoint) -> None:
        """Read this rank's share."""
        self._gate_up.load(checkpoint)
        self._down.load(checkpoint)

    def __call__(self, x: Tensor) -> Tensor:
        """This rank's term [T, hidden] of the output."""
        return self._down(swiglu(self._gate_up(x)))


class Moe:
    """Routed experts, each on one rank, and the shared expert, split over all."""

    def __init__(self, shard: Shard, prefix: str) -> None:
        config = shard.config
        self._shard = shard
        self._prefix = prefix
        self._config = config
        self._shared = Mlp(shard, f"{prefix}.shared_experts", config.moe_intermediate_size * config.num_shared_experts)
        self._router: Tensor
        self._bias: Tensor
        self._experts: Experts

    def load(self, checkpoint: Checkpoint) -> None:
        """Read the router and this rank's experts."""
        config, shard = self._config, self._shard
        experts, hidden, width = config.num_experts, config.hidden_size, config.moe_intermediate_size
        router = checkpoint.read(f"{self._prefix}.gate.weight", (experts, hidden))
        # In fp32 wherever it lies: bf16 scores change which experts win.
        self._router = router.to(shard.device).float()
        bias = f"{self._prefix}.gate.expert_bias"
        self._bias = load_vector(shard, checkpoint, bias, experts, dtype=self._router.dtype)
        self._shared.load(checkpoint)
        mine = range(experts)[shard.share(experts)]
        modules = [f"{self._prefix}.experts.{e}" for e in mine]
        self._experts = load_experts(
            checkpoint,
            [[Part(f"{m}.{name}", (width, hidden)) for name in ("gate_proj", "up_proj")] for m in modules],
            [[Part(f"{m}.down_proj", (hidden, width))] for m in modules],
            mine.start,
            shard.dtype,
            shard.device,
        )

    def __call__(self, x: Tensor) -> Tensor:
        """This rank's term [T, hidden] of routed and shared experts together."""
        config = self._config
        ids, weights = route(
            F.linear(x.float(), self._router),
            self._bias,
            config.n_group,
            config.topk_group,
            config.num_experts_per_tok,
            config.routed_scaling_factor,
        )
        return self._experts(x, ids, weights).add_(self._shared(x)).to(x.dtype)
