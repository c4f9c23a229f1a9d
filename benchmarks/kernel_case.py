"""The rows of `python -m benchmarks.kernels`, and the model's shapes that they use."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Call = Callable[[], object]
BF16 = torch.bfloat16
EPS = 1e-6
# The share of its floor's speed that a kernel is built to reach: one bound by memory; a large product bound by the
# matrix units; and a product that takes longer to unpack its 4-bit weights than to read them.
STREAMING, LARGE_PRODUCT, INT4_STREAMING = 0.75, 0.6, 0.5


@dataclass(frozen=True)
class Sizes:
    """A model's shapes on one rank.

    experts: of this rank; all_experts: of all ranks. decode, prefill: numbers of tokens to measure. contexts: tokens of
    context to measure.
    """

    hidden: int = 4096
    heads: int = 32
    head: int = 128
    norm_groups: int = 4
    rank: int = 512
    rope: int = 64
    q_rank: int = 1536
    all_experts: int = 256
    experts: int = 256
    top_k: int = 8
    groups: int = 8
    top_groups: int = 4
    inner: int = 1024
    shared_inner: int = 1024
    vocab: int = 157184
    page: int = 64
    decode: tuple[int, ...] = (1, 32, 128)
    prefill: int = 8192
    contexts: tuple[int, ...] = (1024, 32768)
    drafts: int = 3

    def over(self, tp: int) -> "Sizes":
        """The shapes on one of tp ranks."""
        return replace(
            self,
            heads=self.heads // tp,
            norm_groups=self.norm_groups // tp,
            experts=self.experts // tp,
            shared_inner=self.shared_inner // tp,
            vocab=self.vocab // tp,
        )


TINY = Sizes(
    hidden=128, heads=2, head=16, norm_groups=2, rank=16, rope=8, q_rank=32, all_experts=4, experts=4, top_k=2,
    groups=2, top_groups=1, inner=128, shared_inner=128, vocab=160, page=16, decode=(2,), prefill=17,
    contexts=(20,), drafts=1,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One row: a kernel at one shape.

    moved: bytes, if each input is read once and each output written once. flops: its operations. expected: the share of
    the floor's speed that it should reach. build: makes new data on a device and returns a call of the kernel and, if
    there is a yardstick, a call of that. rate: the kind of matrix product that limits it, a key of `Ceilings.rates`.
    yardstick: the name of what it is compared with. launches: number of kernels that it launches.
    """

    name: str
    tokens: int
    moved: float
    flops: float
    expected: float
    build: Callable[[torch.device], tuple[Call, Call | None]]
    rate: str = "bf16"
    yardstick: str = ""
    launches: int = 1


def random(device: torch.device, *shape: int, dtype: torch.dtype = BF16) -> Tensor:
    """A tensor of normally distributed numbers."""
    return torch.randn(*shape, device=device, dtype=dtype)


def angles(device: torch.device, tokens: int, half: int) -> tuple[Tensor, Tensor]:
    """Random rotations for rope: cosines and sines, each [tokens, half] in fp32."""
    turned = torch.rand(tokens, half, device=device) * 6
    return turned.cos(), turned.sin()
