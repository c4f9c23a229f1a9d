"""Tests both kinds of attention over ragged rows against loops in fp64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels.mla.attention
from kernels import Keep, lightning_attention, lightning_commit, lightning_verify, make_rows, mla_attention
from tests.kernels import naive

HEADS, DIM, RANK, WIDTH = 3, 8, 12, 16
# (starts, counts): all decode; prompts at chunk edges; everything together, fresh and continued.
BATCHES = [
    ([0], [1]),
    ([37], [1]),
    ([5, 0, 40], [1, 1, 1]),
    ([0, 0, 0], [63, 64, 65]),
    ([7, 0, 31, 15, 16], [1, 129, 64, 17, 1]),
    ([0, 3, 0, 100], [2, 1, 1, 70]),
]


def _random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _lightning_case(starts: list[int], counts: list[int], log_decay: torch.Tensor) -> None:
    positions = torch.tensor([s + i for s, n in zip(starts, counts, strict=True) for i in range(n)])
    rows = make_rows(torch.randperm(len(starts) + 2)[: len(starts)], positions, tuple(starts), tuple(counts))
    q, k, v = (_random(i, sum(counts), HEADS, DIM) for i in range(3))
    state = _random(9, len(starts) + 2, HEADS, DIM, DIM)
    expected_out, expected_state = naive.lightning(q, k, v, state, log_decay, rows)
    for i, start in enumerate(starts):
        if start == 0:
            state[rows.slots[i]] = float("nan")
    out = lightning_attention(q, k, v, state, log_decay, rows)
    torch.testing.assert_close(out.double(), expected_out, rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(state.double(), expected_state, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(("starts", "counts"), BATCHES)
def test_lightning(starts: list[int], counts: list[int]) -> None:
    _lightning_case(starts, counts, torch.tensor([-1.0, -0.1, -1e-5]))


def test_lightning_is_safe_under_extreme_decay() -> None:
    _lightning_case([0, 70], [200, 1], torch.tensor([-50.0, -1000.0, 0.0]))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 90), st.sampled_from([1, 1, 2, 63, 64, 65])), min_size=1, max_size=5))
def test_lightning_any_mix(rows: list[tuple[int, int]]) -> None:
    _lightning_case([s for s, _ in rows], [n for _, n in rows], torch.tensor([-0.5, -0.02, -1e-3]))


def test_states_are_kept_at_any_place() -> None:
    starts, counts = (0, 5, 9, 0), (130, 1, 70, 1)
    slots = torch.tensor([6, 2, 4, 0])
    keeps = tuple(
        Keep(row, count, 7 + i) for i, (row, count) in enumerate([(0, 1), (0, 64), (0, 130), (1, 1), (2, 65)])
    )
    positions = torch.tensor([s + i for s, n in zip(starts, counts, strict=True) for i in range(n)])
    rows = make_rows(slots, positions, starts, counts, keeps)
    q, k, v = (_random(i, sum(counts), HEADS, DIM) for i in range(3))
    state = _random(9, 12, HEADS, DIM, DIM)
    decay = torch.tensor([-1.0, -0.1, -1e-5])
    for keep in keeps:
        short = tuple(keep.count if i == keep.row else n for i, n in enumerate(counts))
        tokens = torch.cat([torch.arange(o, o + n) for o, n in zip(rows.offsets, short, strict=True)])
        part = make_rows(slots, positions[tokens], starts, short)
        _, expected = naive.lightning(q[tokens], k[tokens], v[tokens], state, decay, part)
        after = state.clone()
        lightning_attention(q, k, v, after, decay, rows)
        torch.testing.assert_close(after[keep.slot].double(), expected[slots[keep.row]], rtol=2e-4, atol=2e-4)


def test_drafts_change_nothing_until_they_are_accepted() -> None:
    starts, counts = (3, 0, 8, 2), (4, 4, 1, 3)
    positions = torch.tensor([s + i for s, n in zip(starts, counts, strict=True) for i in range(n)])
    rows = make_rows(torch.tensor([1, 5, 0, 3]), positions, starts, counts)
    q, k, v = (_random(i, sum(counts), HEADS, DIM) for i in range(3))
    state, decay = _random(9, 6, HEADS, DIM, DIM), torch.tensor([-1.0, -0.1, -1e-5])
    before = state.clone()
    expected, _ = naive.lightning(q, k, v, state, decay, rows)
    torch.testing.assert_close(lightning_verify(q, k, v, state, decay, rows).double(), expected, rtol=2e-4, atol=2e-4)
    assert torch.equal(state, before)

    accepted = (2, 1, 0, 3)
    lightning_commit(k, v, state, decay, rows, torch.tensor(accepted))
    tokens = torch.cat([torch.arange(o, o + n) for o, n in zip(rows.offsets, accepted, strict=True)])
    some = [i for i, n in enumerate(accepted) if n]
    part = make_rows(
        rows.slots[some], positions[tokens], tuple(starts[i] for i in some), tuple(accepted[i] for i in some)
    )
    _, expected = naive.lightning(q[tokens], k[tokens], v[tokens], before, decay, part)
    torch.testing.assert_close(state.double(), expected, rtol=2e-4, atol=2e-4)


def _mla_case(starts: list[int], counts: list[int], seed: int, dtype: torch.dtype = torch.float32) -> None:
    rows, pages, table, count = naive.paged_batch(starts, counts, seed)
    pool = torch.full((count, naive.PAGE, WIDTH), float("nan"), dtype=dtype)
    for i, slot in enumerate(rows.slots.tolist()):
        for p in range(starts[i]):
            pool[table[slot, p // naive.PAGE], p % naive.PAGE] = _random(1000 * i + p, WIDTH).to(dtype)
    pool.view(-1, WIDTH)[pages.write_at] = _random(seed, sum(counts), WIDTH).to(dtype)
    q = 3 * _random(seed + 2, sum(counts), HEADS, WIDTH).to(dtype)
    expected = naive.latent_attention(q, pool, RANK, 0.4, rows, table)
    out = mla_attention(q, pool, RANK, 0.4, rows, pages)
    assert out.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("starts", "counts"), BATCHES)
def test_mla(starts: list[int], counts: list[int], dtype: torch.dtype) -> None:
    _mla_case(starts, counts, 3, dtype)


def test_mla_takes_long_rows_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.mla.attention, "_SCORES", HEADS * 100 * 7)
    _mla_case([30, 0, 12], [70, 33, 1], 4)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.sampled_from([1, 1, 1, 2, 15, 16, 17])), min_size=1, max_size=5),
    st.integers(0, 99),
)
def test_mla_any_mix(rows: list[tuple[int, int]], seed: int) -> None:
    _mla_case([s for s, _ in rows], [n for _, n in rows], seed)


def test_latents_land_in_their_own_places() -> None:
    starts, counts = [14, 0, 33], [4, 1, 1]
    rows, pages, table, count = naive.paged_batch(starts, counts, 1)
    pool = torch.zeros(count, naive.PAGE, WIDTH)
    latents = _random(0, 6, WIDTH)
    pool.view(-1, WIDTH)[pages.write_at] = latents
    for i, slot in enumerate(rows.slots.tolist()):
        for n in range(counts[i]):
            p = starts[i] + n
            place = pool[table[slot, p // naive.PAGE], p % naive.PAGE]
            torch.testing.assert_close(place, latents[rows.offsets[i] + n], rtol=0, atol=0)
            place.zero_()
    assert not pool.any()
