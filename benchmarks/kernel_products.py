"""Benchmark rows of the kernels that mostly read weights, and of sampling."""

from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernel_case import BF16, INT4_STREAMING, LARGE_PRODUCT, STREAMING, Call, Case, Sizes, random
from kernels.linear.fp32 import linear_fp32_triton
from kernels.linear.linear import linear_triton
from kernels.linear.quantize import GROUP
from kernels.linear.quantized import BlockFp8, Matrix, PackedInt4
from kernels.moe.experts import moe_experts_triton
from kernels.sampling.sampling import sample_triton
from kernels.swiglu import swiglu_triton


def fp8_matrix(device: torch.device, *shape: int) -> BlockFp8:
    """A random FP8 matrix of `shape` [(E,) out, in], with a scale for each block of 128 x 128."""
    *lead, rows, cols = shape
    # Clearing this bit excludes all NaNs.
    weight = torch.randint(0, 256, shape, dtype=torch.uint8, device=device).bitwise_and_(0xDF)
    row, col = (torch.arange(size, dtype=torch.int32, device=device) // GROUP for size in (rows, cols))
    scale = torch.rand(*lead, -(-rows // GROUP), -(-cols // GROUP), device=device) * 1e-3
    return BlockFp8(weight.view(torch.float8_e4m3fn), scale, row, col, BF16, GROUP, GROUP)


def int4_matrix(device: torch.device, *shape: int) -> PackedInt4:
    """A random INT4 matrix of `shape` [(E,) out, in], with a scale for each group of 32 inputs."""
    *lead, cols = shape
    packed = torch.randint(-(2**31), 2**31 - 1, (*lead, cols // 8), dtype=torch.int32, device=device)
    return PackedInt4(packed, (torch.rand(*lead, cols // 32, device=device) * 1e-2).to(BF16), BF16)


def linears(s: Sizes, n: int) -> Iterator[Case]:
    """Yield the rows of the FP8 release's linear layers, for n tokens."""
    width = s.heads * s.head
    for name, rows, cols in (
        ("qkv and gate of attention", 4 * width, s.hidden),
        ("out of attention", s.hidden, width),
        ("shared expert, gate and up", 2 * s.shared_inner, s.hidden),
        ("shared expert, down", s.hidden, s.shared_inner),
    ):
        if cols % GROUP:
            continue

        def build(device: torch.device, rows: int = rows, cols: int = cols) -> tuple[Call, Call]:
            matrix, x, wide = fp8_matrix(device, rows, cols), random(device, n, cols), random(device, rows, cols)
            return (lambda: linear_triton(x, matrix)), (lambda: F.linear(x, wide))

        expected = STREAMING if n < 256 else LARGE_PRODUCT
        moved, flops = rows * cols + 2 * n * (rows + cols), 2 * n * rows * cols
        yield Case(f"fp8 linear: {name}", n, moved, flops, expected, build, "fp8", "cuBLAS bf16", 1 if n <= 16 else 2)


def experts(s: Sizes, n: int) -> Iterator[Case]:
    """Yield the rows of the routed experts in three formats, for n tokens."""
    pairs = n * s.top_k * s.experts / s.all_experts
    # Expected number of this rank's experts that any token chooses, if tokens choose evenly.
    met = s.experts * (1 - (1 - s.top_k / s.all_experts) ** n)
    weights = 3 * s.inner * s.hidden

    def build(
        stacks: Callable[[torch.device], tuple[Matrix, Matrix]], device: torch.device
    ) -> tuple[Call, Call | None]:
        gate_up, down = stacks(device)
        x, shared = random(device, n, s.hidden), random(device, n, s.hidden)
        ids = torch.rand(n, s.all_experts, device=device).topk(s.top_k, dim=-1).indices
        share = torch.rand(n, s.top_k, device=device)
        rows = random(device, max(1, round(pairs)), s.hidden)
        up, out = random(device, 2 * s.inner, s.hidden), random(device, s.hidden, s.inner)

        def dense() -> Tensor:
            return F.linear(swiglu_triton(F.linear(rows, up)), out)

        return (
            lambda: moe_experts_triton(x, ids, share, gate_up, down, 0, shared),
            dense if n == s.prefill else None,
        )

    for name, size, rate, make in (
        ("bf16", 2.0, "bf16", random),
        ("fp8", 1.0, "fp8", fp8_matrix),
        ("int4", 0.5625, "bf16", int4_matrix),
    ):

        @cache
        def stacks(device: torch.device, make: Callable[..., Matrix] = make) -> tuple[Matrix, Matrix]:
            e = s.experts
            return make(device, e, 2 * s.inner, s.hidden), make(device, e, s.hidden, s.inner)

        moved, flops = met * weights * size + 6 * n * s.hidden, 2 * pairs * weights
        expected = LARGE_PRODUCT if n == s.prefill else INT4_STREAMING if name == "int4" else STREAMING
        yield Case(
            f"{name} experts", n, moved, flops, expected,
            partial(build, stacks), rate, "one cuBLAS bf16 product of all",
            2 if n <= 16 else 7,
        )  # fmt: skip


def head(s: Sizes, n: int) -> Iterator[Case]:
    """Yield the rows of the head and of sampling, for n tokens."""

    @cache
    def weight(device: torch.device) -> Tensor:
        return random(device, s.vocab, s.hidden)

    def build(device: torch.device) -> tuple[Call, Call]:
        x, w = random(device, n, s.hidden), weight(device)
        return (lambda: linear_fp32_triton(x, w)), (lambda: F.linear(x, w))

    moved = 2 * s.hidden * (n + s.vocab) + 4 * n * s.vocab
    yield Case("head", n, moved, 2 * n * s.vocab * s.hidden, STREAMING, build, yardstick="cuBLAS, bf16 out")

    def sample(device: torch.device) -> tuple[Call, Call]:
        logits = random(device, n, s.vocab, dtype=torch.float32)
        one, zero = torch.ones(n, device=device), torch.zeros(n, dtype=torch.int64, device=device)
        return (
            lambda: sample_triton(logits, one, zero, one, one - 1, zero, zero),
            lambda: torch.multinomial(logits.softmax(-1), 1),
        )

    yield Case("sample", n, 4 * n * s.vocab, 0, 0.5, sample, yardstick="torch softmax, multinomial", launches=3)
