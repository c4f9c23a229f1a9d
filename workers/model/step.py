"""What a forward pass works out once and every layer reads."""

from dataclasses import dataclass

from torch import Tensor

from kernels import Forms, Pages, Rows


@dataclass(frozen=True, slots=True)
class LinearRows:
    """A step's rows by what happens to their linear states; None where there are none.

    plain: the state moves on by the whole row. verified: the row ends in drafts, and its state stays as it is until it
    is known how many were accepted; these rows come first, with `tokens` tokens in all.
    """

    plain: Rows | None
    verified: Rows | None
    tokens: int


@dataclass(frozen=True, slots=True)
class StepInputs:
    """linear: the rows as linear attention computes them. forms: how latent attention computes each row.
    linear_rope, mla_rope: (cos, sin) of the step's positions, each [T, dims/2] fp32."""

    linear: LinearRows
    pages: Pages
    forms: Forms
    linear_rope: tuple[Tensor, Tensor]
    mla_rope: tuple[Tensor, Tensor]
