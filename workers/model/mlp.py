"""Feed-forward blocks: one dense MLP, or routed experts with a shared one."""

import torch
from torch import Tensor

from kernels import moe_experts, moe_gate, swiglu, swiglu_quantized
from kernels.linear.quantized import Matrix, rounds_inputs
from workers.model.formats import Part, kind, load_stack
from workers.model.linear import Normed, Shard, column_parallel, load_vector, row_parallel
from workers.model.loader import Loader

_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class Mlp:
    """A SwiGLU MLP whose inner width is split over the ranks."""

    def __init__(self, shard: Shard, prefix: str, width: int) -> None:
        hidden = shard.config.hidden_size
        self._gate_up = column_parallel(shard, [f"{prefix}.gate_proj", f"{prefix}.up_proj"], width, hidden)
        self._down = row_parallel(shard, f"{prefix}.down_proj", hidden, width)

    def load(self, loader: Loader) -> None:
        """Ask for this rank's share."""
        self._gate_up.load(loader)
        self._down.load(loader)

    @property
    def rounds_inputs(self) -> bool:
        """Whether one of its linears reads 8-bit floats."""
        return self._gate_up.rounds_inputs

    def __call__(self, x: Normed) -> Tensor:
        """This rank's term [T, hidden] of the output."""
        inner = self._gate_up(x)
        if self._down.rounds_inputs:
            return self._down.of_rounded(swiglu_quantized(inner))
        return self._down(swiglu(inner))


class Moe:
    """Routed experts, each on one rank, and the shared expert, split over all ranks.

    A single rank treats the shared expert as a further routed one, which every token chooses, if it has the same width
    and format. counts: [experts], counts the tokens that choose each expert; None if nothing is counted.
    """

    def __init__(self, shard: Shard, prefix: str) -> None:
        config = shard.config
        self._shard = shard
        self._prefix = prefix
        self._config = config
        self._mine = range(config.num_experts)[shard.share(config.num_experts)]
        width = config.moe_intermediate_size * config.num_shared_experts
        self._shared: Mlp | None = Mlp(shard, f"{prefix}.shared_experts", width)
        self.counts: Tensor | None = None
        self._router: Tensor
        self._bias: Tensor
        self._gate_up: Matrix
        self._down: Matrix

    def load(self, loader: Loader) -> None:
        """Ask for the gate and this rank's experts."""
        config, shard = self._config, self._shard
        experts, hidden, width = config.num_experts, config.hidden_size, config.moe_intermediate_size
        router, bias = f"{self._prefix}.gate.weight", f"{self._prefix}.gate.expert_bias"
        stored = loader.find(router)
        # The gate is never rounded, because the choice of experts depends on the last bits of their scores.
        dtype = torch.float32 if stored is not None and stored.dtype == "F32" else shard.dtype
        self._router = torch.empty(experts, hidden, dtype=dtype, device=shard.device)
        loader.read(self._router, router, (experts, hidden))
        self._bias = load_vector(shard, loader, bias, experts, dtype=torch.float32)
        modules = [f"{self._prefix}.experts.{e}" for e in self._mine]
        shared = f"{self._prefix}.shared_experts"
        alike = all(kind(loader, f"{shared}.{p}") == kind(loader, f"{modules[0]}.{p}") for p in _PROJECTIONS)
        if alike and shard.size == 1 and config.num_shared_experts == 1:
            modules.append(shared)
            self._shared = None
        elif self._shared is not None:
            self._shared.load(loader)
        target = shard.target(loader)
        self._gate_up = load_stack(
            target, [[Part(f"{m}.{name}", (width, hidden)) for name in _PROJECTIONS[:2]] for m in modules]
        )
        self._down = load_stack(target, [[Part(f"{m}.{_PROJECTIONS[2]}", (hidden, width))] for m in modules])

    @property
    def rounds_inputs(self) -> bool:
        """Whether any of its experts reads 8-bit floats."""
        return (self._shared is not None and self._shared.rounds_inputs) or rounds_inputs(self._gate_up)

    def __call__(self, x: Normed) -> Tensor:
        """This rank's term [T, hidden] of routed and shared experts together."""
        config = self._config
        ids, weights = moe_gate(
            x.x,
            self._router,
            self._bias,
            config.n_group,
            config.topk_group,
            config.num_experts_per_tok,
            config.routed_scaling_factor,
            self._shared is None,
        )
        if self.counts is not None:
            chosen = ids[:, : config.num_experts_per_tok].flatten()
            self.counts.index_add_(0, chosen, torch.ones_like(chosen, dtype=self.counts.dtype))
        shared = None if self._shared is None else self._shared(x)
        known = x.rounded if rounds_inputs(self._gate_up) else None
        first = self._mine.start
        return moe_experts(x.x, ids, weights, self._gate_up, self._down, first, shared, rounded=known)
