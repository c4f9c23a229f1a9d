"""Benchmark rows of the kernels that mostly read and write a batch's activations."""

from collections.abc import Iterator

import torch

from benchmarks.kernel_case import BF16, EPS, STREAMING, Call, Case, Sizes, angles, random
from kernels.group_norm_gate import group_rms_norm_gate_reference, group_rms_norm_gate_triton
from kernels.linear.quantize import (
    add_rms_norm_quantized_triton,
    quantize_fp8_reference,
    quantize_fp8_triton,
    swiglu_quantized_triton,
)
from kernels.mla.latent import norm_rope_write_latent_reference, norm_rope_write_latent_triton
from kernels.moe.gate import moe_gate_reference, moe_gate_triton
from kernels.norm import add_rms_norm_reference, add_rms_norm_triton
from kernels.rope import (
    qk_norm_rope_reference,
    qk_norm_rope_triton,
    rope_interleaved_reference,
    rope_interleaved_triton,
)
from kernels.swiglu import swiglu_reference, swiglu_triton


def elementwise(s: Sizes, n: int) -> Iterator[Case]:
    """Yield the rows of norms, ropes, activation functions, quantization and the experts' gate, for n tokens."""
    d, width = s.hidden, s.heads * s.head

    def add_norm(device: torch.device) -> tuple[Call, Call]:
        x, residual, weight = random(device, n, d), random(device, n, d), random(device, d)
        return (
            lambda: add_rms_norm_triton(x, residual, weight, EPS),
            lambda: add_rms_norm_reference(x, residual, weight, EPS),
        )

    yield Case("residual + RMSNorm", n, 8 * n * d, 0, STREAMING, add_norm, yardstick="torch")

    def add_norm_8(device: torch.device) -> tuple[Call, None]:
        x, residual, weight = random(device, n, d), random(device, n, d), random(device, d)
        return (lambda: add_rms_norm_quantized_triton(x, residual, weight, EPS)), None

    yield Case("residual + RMSNorm + round to fp8", n, 9 * n * d, 0, STREAMING, add_norm_8)

    def round_8(device: torch.device) -> tuple[Call, Call]:
        x = random(device, n, d)
        return (lambda: quantize_fp8_triton(x)), (lambda: quantize_fp8_reference(x))

    yield Case("round to fp8", n, 3 * n * d, 0, STREAMING, round_8, yardstick="torch")

    def qk(device: torch.device) -> tuple[Call, Call]:
        packed, weight = random(device, n, 3, s.heads, s.head), random(device, 2, 1, s.head)
        cos, sin = angles(device, n, s.head // 4)
        return (
            lambda: qk_norm_rope_triton(packed[:, :2], weight, cos, sin, EPS),
            lambda: qk_norm_rope_reference(packed[:, :2], weight, cos, sin, EPS),
        )

    yield Case("QK norm + rope", n, 12 * n * width, 0, STREAMING, qk, yardstick="torch")

    def gate(device: torch.device) -> tuple[Call, Call]:
        x, g, weight = random(device, n, width, dtype=torch.float32), random(device, n, width), random(device, width)
        return (
            lambda: group_rms_norm_gate_triton(x, g, weight, s.norm_groups, EPS),
            lambda: group_rms_norm_gate_reference(x, g, weight, s.norm_groups, EPS),
        )

    yield Case("GroupRMSNorm + gate", n, 8 * n * width, 0, STREAMING, gate, yardstick="torch")

    def roped(device: torch.device) -> tuple[Call, Call]:
        x = random(device, n, s.heads, s.head + s.rope)[..., s.head :]
        cos, sin = angles(device, n, s.rope // 2)
        return (lambda: rope_interleaved_triton(x, cos, sin)), (lambda: rope_interleaved_reference(x, cos, sin))

    yield Case("MLA query rope", n, 4 * n * s.heads * s.rope, 0, STREAMING, roped, yardstick="torch")

    def latent(device: torch.device) -> tuple[Call, Call]:
        projected = random(device, n, s.q_rank + s.rank + s.rope)
        weights = random(device, s.q_rank), random(device, s.rank)
        pool = torch.empty(n // s.page + 1, s.page, s.rank + s.rope, dtype=BF16, device=device)
        cos, sin = angles(device, n, s.rope // 2)
        at = torch.randperm(pool.shape[0] * s.page, device=device)[:n]
        return (
            lambda: norm_rope_write_latent_triton(pool, projected, *weights, cos, sin, at, EPS),
            lambda: norm_rope_write_latent_reference(pool, projected, *weights, cos, sin, at, EPS),
        )

    moved = 4 * n * (s.q_rank + s.rank + s.rope)
    yield Case("MLA norms + rope + write", n, moved, 0, STREAMING, latent, yardstick="torch")

    def act(device: torch.device) -> tuple[Call, Call]:
        x = random(device, n, 2 * s.shared_inner)
        return (lambda: swiglu_triton(x)), (lambda: swiglu_reference(x))

    yield Case("SwiGLU", n, 6 * n * s.shared_inner, 0, STREAMING, act, yardstick="torch")

    def act_8(device: torch.device) -> tuple[Call, None]:
        x = random(device, n, 2 * s.shared_inner)
        return (lambda: swiglu_quantized_triton(x)), None

    yield Case("SwiGLU + round to fp8", n, 5 * n * s.shared_inner, 0, STREAMING, act_8)

    def choice(device: torch.device) -> tuple[Call, Call]:
        x, w, bias = random(device, n, d), random(device, s.all_experts, d), torch.zeros(s.all_experts, device=device)
        setting = (bias, s.groups, s.top_groups, s.top_k, 2.5)
        return (lambda: moe_gate_triton(x, w, *setting)), (lambda: moe_gate_reference(x, w, *setting))

    moved, flops = 2 * (n + s.all_experts) * d + 12 * n * s.top_k, 2 * n * s.all_experts * d
    yield Case("moe_gate", n, moved, flops, STREAMING, choice, yardstick="torch", launches=1 if n <= 16 else 2)
