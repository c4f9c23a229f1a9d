"""Values that a forward pass computes once for all layers."""

from dataclasses import dataclass

from torch import Tensor

from kernels import Forms, Pages, Rows


@dataclass(frozen=True, slots=True)
class LinearRows:
    """A step's rows by what happens to their linear states; None if there are none.

    plain: the state advances by the whole row. verified: the row ends in drafts, and its state does not change until
    the number of accepted tokens is known. Verified rows come first and have `tokens` tokens in all.
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
