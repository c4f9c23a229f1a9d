"""The kernel that writes latents against its reference."""

import pytest
import torch

from kernels.latent import norm_rope_write_latent_reference, norm_rope_write_latent_triton
from tests.kernels.conftest import close

EPS = 1e-6


def on_sm90() -> None:
    pool = torch.empty(1 << 16, 64, 576, dtype=torch.bfloat16, device="meta")
    angles, at = torch.empty(8, 32, device="meta"), torch.empty(8, dtype=torch.int64, device="meta")
    norm_rope_write_latent_triton(pool, pool[0, :8], pool[0, 0, :512], angles, angles, at, EPS)


@pytest.mark.parametrize(("tokens", "rank", "half"), [(0, 8, 2), (1, 2, 1), (5, 34, 3), (3, 64, 8)])
def test_written_places_and_no_others(
    tokens: int, rank: int, half: int, dtype: torch.dtype, device: torch.device
) -> None:
    torch.manual_seed(0)
    kv = torch.randn(tokens, rank + 2 * half, device=device).to(dtype)
    weight, angles = torch.randn(rank, device=device).to(dtype), torch.rand(tokens, half, device=device) * 9
    at = torch.randperm(3 * 4, device=device)[:tokens]
    got = torch.full((3, 4, rank + 2 * half), float("nan"), device=device, dtype=dtype)
    expected = got.clone()
    for pool, write in ((got, norm_rope_write_latent_triton), (expected, norm_rope_write_latent_reference)):
        write(pool, kv, weight, angles.cos(), angles.sin(), at, EPS)
    flat = got.view(12, -1)
    close(flat[at], expected.view(12, -1)[at])
    untouched = torch.ones(12, dtype=torch.bool, device=device).index_fill_(0, at, False)
    assert bool(flat[untouched].isnan().all())
