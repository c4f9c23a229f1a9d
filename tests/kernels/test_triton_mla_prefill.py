"""Tests the kernel of the expanded form against its reference."""

import pytest
import torch

import kernels.mla.prefill
from kernels.device import Device
from kernels.mla.forms import LongRow
from kernels.mla.prefill import mla_prefill_reference, mla_prefill_triton
from tests.kernels.conftest import close

SMALL = {"QUERIES": 16, "KEYS": 16, "num_warps": 4, "num_stages": 1}


def on_card(card: Device) -> None:
    meta = torch.device("meta")
    for heads, dtype in ((32, torch.bfloat16), (8, torch.bfloat16), (8, torch.float32)):
        q = torch.empty(9000, heads, 192, dtype=dtype, device=meta)
        pool = torch.empty(10000, 64, 576, dtype=dtype, device=meta)
        kv_b = torch.empty(heads, 256, 512, dtype=dtype, device=meta)
        out = torch.empty(9000, heads, 128, dtype=dtype, device=meta)
        row = LongRow(3, 8192, 1000, torch.empty(144, dtype=torch.int64, device=meta))
        mla_prefill_triton(q, pool, kv_b, out, 0.07, row)


# From the start, from within a page, in one run of keys and in several (a page at once).
@pytest.mark.parametrize(
    ("start", "count", "at_once", "shape"),
    [
        (0, 1, 1 << 20, (2, 16, 16, 16)),
        (0, 45, 1, (1, 12, 4, 9)),
        (37, 20, 1 << 20, (3, 12, 4, 9)),
        (37, 20, 1, (1, 16, 16, 16)),
        (64, 33, 1, (2, 12, 4, 9)),
    ],
    ids=str,
)
def test_a_row(
    start: int, count: int, at_once: int, shape: tuple[int, int, int, int], dtype: torch.dtype,
    device: torch.device, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(kernels.mla.prefill, "_EXPANDED", at_once)
    heads, nope, rope, v = shape
    rank, page = 24, 16
    torch.manual_seed(count)
    needs = -(-(start + count) // page)
    ids = torch.randperm(needs + 2, device=device)[:needs]
    pool = torch.full((needs + 2, page, rank + rope), float("nan"), device=device)
    at = torch.arange(start + count, device=device)
    pool[ids[at // page], at % page] = torch.randn(start + count, rank + rope, device=device)
    pool = pool.to(dtype)
    # The row stands among others.
    q = torch.randn(count + 5, heads, nope + rope, device=device).to(dtype)
    kv_b = (torch.randn(heads, nope + v, rank, device=device) / 5).to(dtype)
    expected, got = (torch.zeros(count + 5, heads, v, dtype=dtype, device=device) for _ in range(2))
    row = LongRow(2, count, start, ids)
    mla_prefill_reference(q, pool, kv_b, expected, 0.3, row)
    mla_prefill_triton(q, pool, kv_b, got, 0.3, row, SMALL)
    close(got, expected)
    assert not got[:2].any()
    assert not got[2 + count :].any()
