"""Tests the kernel that writes latents against its reference."""

import pytest
import torch

from kernels.device import Device
from kernels.mla.latent import norm_rope_write_latent_reference, norm_rope_write_latent_triton
from tests.kernels.conftest import close

EPS = 1e-6


def on_card(card: Device) -> None:
    pool = torch.empty(1 << 16, 64, 576, dtype=torch.bfloat16, device="meta")
    projected = torch.empty(8, 1536 + 576, dtype=torch.bfloat16, device="meta")
    angles, at = torch.empty(8, 32, device="meta"), torch.empty(8, dtype=torch.int64, device="meta")
    norm_rope_write_latent_triton(pool, projected, projected[0, :1536], pool[0, 0, :512], angles, angles, at, EPS)


@pytest.mark.parametrize(
    ("tokens", "query", "rank", "half"), [(0, 4, 8, 2), (1, 2, 2, 1), (5, 4, 34, 3), (3, 66, 64, 8), (2, 9, 63, 1)]
)
@pytest.mark.parametrize("normed", [True, False])
def test_written_places_and_no_others(
    tokens: int, query: int, rank: int, half: int, normed: bool, dtype: torch.dtype, device: torch.device
) -> None:
    torch.manual_seed(0)
    width = query + rank + 2 * half
    wide = torch.full((tokens, width + 6), float("nan"), device=device)
    wide[:, :width] = torch.randn(tokens, width, device=device)
    projected = wide.to(dtype)[:, :width]
    weight, angles = torch.randn(rank, device=device).to(dtype), torch.rand(tokens, half, device=device) * 9
    query_weight = torch.randn(query, device=device).to(dtype) if normed else None
    at = torch.randperm(3 * 4, device=device)[:tokens]
    got = torch.full((3, 4, rank + 2 * half), float("nan"), device=device, dtype=dtype)
    expected = got.clone()
    queries, expected_queries = (
        write(pool, projected, query_weight, weight, angles.cos(), angles.sin(), at, EPS)
        for pool, write in ((got, norm_rope_write_latent_triton), (expected, norm_rope_write_latent_reference))
    )
    close(queries, expected_queries)
    flat = got.view(12, -1)
    close(flat[at], expected.view(12, -1)[at])
    untouched = torch.ones(12, dtype=torch.bool, device=device).index_fill_(0, at, False)
    assert bool(flat[untouched].isnan().all())
