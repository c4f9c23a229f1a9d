"""Defines batches of several sizes for which a kernel must have one compiled variant; `test_compile` compiles them."""

import torch

from kernels.device import Device
from kernels.linear.fp32 import linear_fp32_triton
from kernels.linear.linear import linear_triton
from kernels.moe.experts import moe_experts_triton
from tests.kernels.matrices import FORMATS

# Divisible by 16, odd, and one that is neither: what a compiler would tell apart.
TOKENS = (160, 161, 170)


def on_card(card: Device) -> None:
    meta, bf16 = torch.device("meta"), torch.bfloat16
    matrix = FORMATS["int4"]((4096, 4096), bf16, meta)
    stacks = [FORMATS["plain"](shape, bf16, meta) for shape in ((64, 512, 256), (64, 256, 256))]
    weight = torch.empty(256, 4096, dtype=bf16, device=meta)
    for tokens in TOKENS:
        x = torch.empty(tokens, 4096, dtype=bf16, device=meta)
        linear_triton(x, matrix)
        linear_fp32_triton(x, weight)
        ids = torch.empty(tokens, 2, dtype=torch.int64, device=meta)
        moe_experts_triton(x[:, :256], ids, torch.empty(tokens, 2, device=meta), stacks[0], stacks[1], 0)
