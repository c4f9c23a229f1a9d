"""Tests latent attention's two forms: which row takes which, and that both give the same result."""

import pytest
import torch

import kernels.mla.forms
import kernels.mla.prefill
from kernels import Widths, forms, latent_attention, make_pages, make_rows, rope_interleaved
from kernels.mla.forms import repays
from tests.kernels import naive

LING, NANO = Widths(128, 64, 128, 512), Widths(32, 16, 32, 128)
HEADS, NOPE, ROPE, V, RANK = 3, 6, 4, 5, 12
WIDTHS = Widths(NOPE, ROPE, V, RANK)


def _operations(start: int, count: int, w: Widths, expanded: bool) -> int:
    """The operations of one head, counted pair by pair."""
    pairs = sum(start + i + 1 for i in range(count))
    if expanded:
        return 2 * (start + count) * w.rank * (w.nope + w.v) + 2 * pairs * (w.nope + w.rope + w.v)
    return 2 * count * w.rank * (w.nope + w.v) + 2 * pairs * (w.rank + w.rope + w.rank)


@pytest.mark.parametrize("widths", [LING, NANO])
@pytest.mark.parametrize("start", [0, 100, 8192, 122880])
@pytest.mark.parametrize("count", [1, 4, 127, 128, 160, 200, 1024, 8192])
def test_a_row_takes_the_form_of_fewer_operations(widths: Widths, start: int, count: int) -> None:
    fewer = _operations(start, count, widths, True) < _operations(start, count, widths, False)
    assert repays(start, count, widths) == (fewer and count >= 128)


def test_a_long_prompt_takes_a_third_of_the_absorbed_operations() -> None:
    chunks = [(at, 8192) for at in range(0, 131072, 8192)]
    assert all(repays(*chunk, LING) for chunk in chunks)
    # 32 heads and 4 layers.
    absorbed, expanded = (128 * sum(_operations(*chunk, LING, form) for chunk in chunks) for form in (False, True))
    assert absorbed / 1e15 == pytest.approx(2.4, abs=0.05)
    assert expanded / 1e15 == pytest.approx(0.74, abs=0.05)


@pytest.mark.parametrize(
    ("starts", "counts"),
    [([0], [70]), ([37], [40]), ([5, 0, 40, 31], [1, 90, 33, 4]), ([7, 64], [1, 64])],
)
@pytest.mark.parametrize("at_once", [1 << 20, 500])
def test_both_forms_are_one_attention(
    starts: list[int], counts: list[int], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels.mla.forms, "LEAST", 32)
    # Few heads and few queries at once.
    monkeypatch.setattr(kernels.mla.prefill, "_EXPANDED", at_once)
    monkeypatch.setattr(kernels.mla.prefill, "_MASK", at_once)
    rows, pages, table, count = naive.paged_batch(starts, counts, 3)
    long = [i for i, n in enumerate(counts) if n >= 32]
    chosen = forms(rows, pages, WIDTHS)
    assert [row.count for row in chosen.long] == [counts[i] for i in long]
    assert len(chosen.short) == (1 in counts) + any(1 < n < 32 for n in counts)

    draw = torch.Generator().manual_seed(1)
    # Places no row has written hold NaN.
    pool = torch.full((count, naive.PAGE, RANK + ROPE), float("nan"))
    for i, slot in enumerate(rows.slots.tolist()):
        for p in range(starts[i] + counts[i]):
            pool[table[slot, p // naive.PAGE], p % naive.PAGE] = torch.randn(RANK + ROPE, generator=draw)
    queries = torch.randn(sum(counts), HEADS, NOPE + ROPE, generator=draw)
    kv_b = torch.randn(HEADS, NOPE + V, RANK, generator=draw)
    angles = torch.rand(sum(counts), ROPE // 2, generator=draw) * 6
    cos, sin = angles.cos(), angles.sin()

    into_latent = torch.einsum("thn,hnr->thr", queries[..., :NOPE].double(), kv_b[:, :NOPE].double())
    turned = rope_interleaved(queries[..., NOPE:], cos, sin).double()
    found = naive.latent_attention(torch.cat((into_latent, turned), -1), pool, RANK, 0.3, rows, table)
    expected = torch.einsum("thr,hvr->thv", found, kv_b[:, NOPE:].double())
    got = latent_attention(queries, cos, sin, pool, kv_b, 0.3, chosen)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


def test_long_rows_are_found_without_asking_the_device() -> None:
    meta = torch.device("meta")
    starts, counts = (9000, 50, 0), (1, 8192, 300)
    slots, positions = (torch.empty(n, dtype=torch.int64, device=meta) for n in (3, sum(counts)))
    # A number asked of such a tensor is an error.
    rows = make_rows(slots, positions, starts, counts)
    pages = make_pages(rows, torch.empty(128, 2048, dtype=torch.int32, device=meta), 64)
    chosen = forms(rows, pages, LING)
    assert [row.pages.shape[0] for row in chosen.long] == [129, 5]
    assert [short.rows.counts for short in chosen.short] == [(1,)]
