"""Tests latent attention's kernel against its reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import Pages, Rows, make_pages, make_rows
from kernels.device import Device
from kernels.mla.attention import mla_attention_reference, mla_attention_triton
from tests.kernels.conftest import close

SMALL = {"KEYS": 16, "programs": 1, "num_warps": 4, "num_stages": 2}
SPLIT = SMALL | {"programs": 12}


def on_card(card: Device) -> None:
    meta = torch.device("meta")
    decode, drafts, prompt = ((9000,) * 4, (1,) * 4), ((100,) * 8, (4,) * 8), ((0,), (8192,))
    cases = [(32, torch.bfloat16, decode), (32, torch.bfloat16, drafts), (32, torch.bfloat16, prompt)]
    cases += [(8, torch.bfloat16, decode)]
    if card.shared > 128 * 1024:
        cases += [(8, torch.float32, decode)]
    for heads, dtype, (starts, counts) in cases:
        slots, positions = (torch.empty(n, dtype=torch.int64, device=meta) for n in (len(starts), sum(counts)))
        rows = make_rows(slots, positions, starts, counts)
        pages = make_pages(rows, torch.empty(128, 2048, dtype=torch.int32, device=meta), 64)
        q = torch.empty(sum(counts), heads, 576, dtype=dtype, device=meta)
        pool = torch.empty(10000, 64, 576, dtype=dtype, device=meta)
        mla_attention_triton(q, pool, 512, 0.07, rows, pages)


def _batch(starts: list[int], counts: list[int], page: int, device: torch.device) -> tuple[Rows, Pages, int]:
    """Rows in shuffled slots and pages, and the number of pages; unused table entries point at the last page."""
    generator = torch.Generator().manual_seed(sum(starts) + sum(counts))
    slots = torch.randperm(len(starts) + 2, generator=generator)[: len(starts)]
    needs = [-(-(s + n) // page) for s, n in zip(starts, counts, strict=True)]
    free = torch.randperm(sum(needs), generator=generator).int()
    table = torch.full((len(starts) + 2, max(needs) + 3), sum(needs), dtype=torch.int32)
    for slot, ids in zip(slots.tolist(), free.split(needs), strict=True):
        table[slot, : len(ids)] = ids
    positions = torch.tensor([s + i for s, n in zip(starts, counts, strict=True) for i in range(n)])
    rows = make_rows(slots.to(device), positions.to(device), tuple(starts), tuple(counts))
    return rows, make_pages(rows, table.to(device), page), sum(needs) + 1


def _case(
    starts: list[int],
    counts: list[int],
    tuned: dict[str, int],
    dtype: torch.dtype,
    device: torch.device,
    shape: tuple[int, int, int, int] = (3, 12, 4, 16),
    scale: float = 0.4,
) -> None:
    heads, rank, rope, page = shape
    rows, pages, count = _batch(starts, counts, page, device)
    torch.manual_seed(sum(counts))
    # Places no row has written hold NaN, and so does the page nobody owns.
    pool = torch.full((count * page, rank + rope), float("nan"), device=device)
    for i, slot in enumerate(rows.slots.tolist()):
        at = torch.arange(starts[i] + counts[i], device=device)
        places = pages.table[slot].long()[at // page] * page + at % page
        pool[places] = torch.randn(len(at), rank + rope, device=device)
    pool = pool.to(dtype).view(count, page, -1)
    q = torch.randn(sum(counts), heads, rank + rope, device=device).to(dtype)
    expected = mla_attention_reference(q, pool, rank, scale, rows, pages)
    limit = torch.bfloat16 if dtype == torch.float16 else dtype
    close(mla_attention_triton(q, pool, rank, scale, rows, pages, tuned), expected, limit)


BATCHES = [
    ([0], [1]),
    ([37], [1]),
    ([5, 0, 62, 63, 64], [1, 1, 1, 1, 1]),
    ([40, 7], [4, 4]),
    ([0, 47, 15], [9, 1, 2]),
    ([0], [33]),
]


@pytest.mark.parametrize("tuned", [SMALL, SPLIT], ids=["whole", "split"])
@pytest.mark.parametrize(("starts", "counts"), BATCHES)
def test_ragged_rows(
    starts: list[int], counts: list[int], tuned: dict[str, int], dtype: torch.dtype, device: torch.device
) -> None:
    _case(starts, counts, tuned, dtype, device)


# Heads that fill a program, more than one holds, and an odd number; widths that are and are not powers of two.
@pytest.mark.parametrize("shape", [(16, 16, 16, 16), (40, 48, 8, 32), (5, 33, 2, 16)], ids=str)
@pytest.mark.parametrize("tuned", [SMALL, SPLIT], ids=["whole", "split"])
def test_shapes(
    shape: tuple[int, int, int, int], tuned: dict[str, int], dtype: torch.dtype, device: torch.device
) -> None:
    _case([20, 3, 0], [1, 2, 3], tuned, dtype, device, shape)


@pytest.mark.parametrize("page", [1, 3, 8, 16, 64])
def test_page_sizes(page: int, dtype: torch.dtype, device: torch.device) -> None:
    _case([33, 2, 15], [1, 3, 1], SPLIT, dtype, device, (2, 16, 4, page))


# 16-bit tiles are larger, and the interpreter multiplies fp16 alone.
@pytest.mark.parametrize(("starts", "counts"), [([70, 3], [1, 1]), ([40, 3], [3, 2])])
def test_sixteen_bits(starts: list[int], counts: list[int], device: torch.device) -> None:
    _case(starts, counts, SPLIT | {"KEYS": 32}, torch.float16, device, (20, 24, 8, 64))


@pytest.mark.parametrize("scale", [0.0, 1e-3, 30.0])
def test_extreme_scores(scale: float, device: torch.device) -> None:
    _case([50, 0], [2, 1], SPLIT, torch.float32, device, scale=scale)


@settings(max_examples=4, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.sampled_from([1, 1, 2, 5])), min_size=1, max_size=4))
def test_any_mix(rows: list[tuple[int, int]]) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _case([s for s, _ in rows], [n for _, n in rows], SPLIT, torch.float32, device)


def test_a_captured_step_follows_its_refilled_inputs(device: torch.device) -> None:
    rows, pages, count = _batch([37, 5, 60], [1, 1, 1], 16, device)
    captured = make_rows(rows.slots, rows.positions, (0, 0, 0), rows.counts)
    q, pool = torch.randn(3, 2, 16, device=device), torch.randn(count, 16, 16, device=device)
    got = mla_attention_triton(q, pool, 12, 0.4, captured, make_pages(captured, pages.table, 16))
    close(got, mla_attention_reference(q, pool, 12, 0.4, rows, pages))


def test_a_pool_in_pieces_is_refused(device: torch.device) -> None:
    rows, pages, count = _batch([0], [1], 16, device)
    pool = torch.zeros(count, 16, 32, device=device)[..., :16]
    with pytest.raises(ValueError, match="the latent pool must be contiguous"):
        mla_attention_triton(torch.zeros(1, 2, 16, device=device), pool, 12, 1.0, rows, pages)
