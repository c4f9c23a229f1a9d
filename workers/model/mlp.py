"""Feed-forward blocks: one dense MLP, or routed experts with a shared one."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import moe_experts, route, swiglu
from workers.model.formats import Matrix, Part, load_stack
from workers.model.linear import Shard, column_parallel, load_vector, row_parallel
from workers.model.loader import Loader


class Mlp:
    """SwiGLU MLP, its inner width split over the ranks."""

    def __init__(self, shard: Shard, prefix: str, width: int) -> None:
        hidden = shard.config.hidden_size
        self._gate_up = column_parallel(shard, [f"{prefix}.gate_proj", f"{prefix}.up_proj"], width, hidden)
        self._down = row_parallel(shard, f"{prefix}.down_proj", hidden, width)

    def load(self, loader: Loader) -> None:
        """Ask for this rank's share."""
        self._gate_up.load(loader)
        self._down.load(loader)

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
        self._mine = range(config.num_experts)[shard.share(config.num_experts)]
        self._shared = Mlp(shard, f"{prefix}.shared_experts", config.moe_intermediate_size * config.num_shared_experts)
        self._router: Tensor
        self._bias: Tensor
        self._gate_up: Matrix
        self._down: Matrix

    def load(self, loader: Loader) -> None:
        """Ask for the router and this rank's experts."""
        config, shard = self._config, self._shard
        experts, hidden, width = config.num_experts, config.hidden_size, config.moe_intermediate_size
        # In fp32 wherever it lies: bf16 scores change which experts win.
        self._router = torch.empty(experts, hidden, dtype=torch.float32, device=shard.device)
        loader.read(self._router, f"{self._prefix}.gate.weight", (experts, hidden))
        bias = f"{self._prefix}.gate.expert_bias"
        self._bias = load_vector(shard, loader, bias, experts, dtype=self._router.dtype)
        self._shared.load(loader)
        modules = [f"{self._prefix}.experts.{e}" for e in self._mine]
        target = shard.target(loader)
        self._gate_up = load_stack(
            target, [[Part(f"{m}.{name}", (width, hidden)) for name in ("gate_proj", "up_proj")] for m in modules]
        )
        self._down = load_stack(target, [[Part(f"{m}.down_proj", (hidden, width))] for m in modules])

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
        routed = moe_experts(x, ids, weights, self._gate_up, self._down, self._mine.start)
        return routed.add_(self._shared(x)).to(x.dtype)
