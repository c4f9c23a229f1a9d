"""How weights lie in files and memory. A format is chosen tensor by tensor, from what the checkpoint holds.

Every matrix of the model is a stack of parts: rows x columns of checkpoint modules' `[out, in]` matrices.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import moe_experts
from workers.model.files import WeightError
from workers.model.weights import WHOLE, Checkpoint

_FLOATS = ("F32", "BF16", "F16")


@dataclass(frozen=True, slots=True)
class Part:
    """The rows and columns a rank owns of a module's matrix, whose whole shape is `shape`."""

    module: str
    shape: tuple[int, int]
    rows: slice = field(default_factory=lambda: WHOLE)
    cols: slice = field(default_factory=lambda: WHOLE)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns owned."""
        rows, cols = (len(range(*s.indices(n))) for s, n in zip((self.rows, self.cols), self.shape, strict=True))
        return rows, cols


class Matrix(ABC):
    """A linear map as it lies in memory."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """x [T, in] to [T, out] in x's dtype."""

    @abstractmethod
    def dense(self) -> Tensor:
        """[out, in] in the compute dtype."""


class Experts(ABC):
    """A rank's experts as they lie in memory."""

    @abstractmethod
    def __call__(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum [T, D] fp32 of these experts' outputs; arguments as `kernels.moe_experts`."""


class DenseMatrix(Matrix):
    """Plain floats in the compute dtype."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight)

    def dense(self) -> Tensor:
        return self._weight


class DenseExperts(Experts):
    """Plain floats in the compute dtype: gate_up [E, 2I, D], down [E, D, I], from expert `first` on."""

    def __init__(self, gate_up: Tensor, down: Tensor, first: int) -> None:
        self._gate_up = gate_up
        self._down = down
        self._first = first

    def __call__(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        return moe_experts(x, ids, weights, self._gate_up, self._down, self._first)


def load_matrix(checkpoint: Checkpoint, parts: Sequence[Part], dtype: torch.dtype, device: torch.device) -> Matrix:
    """The parts' rows, one under the other."""
    _check_plain(checkpoint, parts)
    weight = _allocate(parts, (), dtype, device)
    _fill(weight, checkpoint, parts)
    return DenseMatrix(weight)


def load_experts(
    checkpoint: Checkpoint,
    gate_up: Sequence[Sequence[Part]],
    down: Sequence[Sequence[Part]],
    first: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Experts:
    """Experts `first` … in order, each given by its gate and up parts and its down part."""
    stacks = []
    for experts in (gate_up, down):
        stack = _allocate(experts[0], (len(experts),), dtype, device)
        for out, parts in zip(stack, experts, strict=True):
            _check_plain(checkpoint, parts)
            _fill(out, checkpoint, parts)
        stacks.append(stack)
    return DenseExperts(stacks[0], stacks[1], first)


def _check_plain(checkpoint: Checkpoint, parts: Sequence[Part]) -> None:
    for part in parts:
        name = f"{part.module}.weight"
        if (kind := checkpoint.dtype(name)) not in _FLOATS:
            raise WeightError(f"{name} is stored as {kind}; served are {', '.join(_FLOATS)}")


def _allocate(parts: Sequence[Part], lead: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    rows = sum(p.size[0] for p in parts)
    return torch.empty((*lead, rows, parts[0].size[1]), dtype=dtype, device=device)


def _fill(out: Tensor, checkpoint: Checkpoint, parts: Sequence[Part]) -> None:
    at = 0
    for part in parts:
        data = checkpoint.read(f"{part.module}.weight", part.shape, part.rows, part.cols)
        out[at : at + data.shape[0]].copy_(data)
        at += data.shape[0]
