"""What a forward pass works out once and every layer reads."""

from dataclasses import dataclass

from torch import Tensor

from kernels import Forms, Pages, Rows


@dataclass(frozen=True, slots=True)
class StepInputs:
    """linear_rope, mla_rope: (cos, sin) of the step's positions, each [T, dims/2] fp32. forms: how latent attention
    computes each row."""

    rows: Rows
    pages: Pages
    forms: Forms
    linear_rope: tuple[Tensor, Tensor]
    mla_rope: tuple[Tensor, Tensor]
