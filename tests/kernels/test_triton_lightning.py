"""Tests lightning attention's kernels against their references."""

from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import Keep, Rows, make_rows
from kernels.device import Device
from kernels.lightning.attention import lightning_attention_reference, lightning_attention_triton
from kernels.lightning.chunks import chunks
from kernels.lightning.step import step
from kernels.lightning.verify import (
    lightning_commit_reference,
    lightning_commit_triton,
    lightning_verify_reference,
    lightning_verify_triton,
)
from tests.kernels.conftest import close

DECAY = (-1.0, -0.1, -1e-5)
# On a GPU the products of long rows take their factors in tf32.
LIMIT = torch.bfloat16 if torch.cuda.is_available() else torch.float32
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def on_card(card: Device) -> None:
    meta = torch.device("meta")
    for heads in (32, 8):
        for starts, counts in (((9,), (1,)), ((9,) * 128, (1,) * 128), ((9,) * 8, (4,) * 8), ((0, 5), (8192, 1))):
            tokens = sum(counts)
            slots, positions = (torch.empty(n, dtype=torch.int64, device=meta) for n in (len(starts), tokens))
            rows = make_rows(slots, positions, starts, counts, (Keep(0, counts[0], 1),))
            qk = torch.empty(tokens, 2, heads, 128, device=meta)
            v = torch.empty(tokens, 3, heads, 128, dtype=torch.bfloat16, device=meta)[:, 2]
            state, decay = torch.empty(200, heads, 128, 128, device=meta), torch.empty(heads, device=meta)
            lightning_attention_triton(qk[:, 0], qk[:, 1], v, state, decay, rows)
            lightning_verify_triton(qk[:, 0], qk[:, 1], v, state, decay, rows)
            lightning_commit_triton(qk[:, 1], v, state, decay, rows, slots.int())


def _rows(starts: Iterable[int], counts: Iterable[int], device: torch.device, keeps: tuple[Keep, ...] = ()) -> Rows:
    starts, counts = tuple(starts), tuple(counts)
    positions = torch.tensor([s + i for s, n in zip(starts, counts, strict=True) for i in range(n)])
    generator = torch.Generator().manual_seed(len(positions))
    slots = torch.randperm(len(starts) + 2, generator=generator)[: len(starts)]
    return make_rows(slots.to(device), positions.to(device), starts, counts, keeps)


def _tensors(rows: Rows, decay: Iterable[float], shape: tuple[int, int], dtype: torch.dtype) -> Tensors:
    """q, k, v as strided views, states and decays. Memory that a kernel must not read holds NaN."""
    (dim, values), tokens, device = shape, rows.positions.shape[0], rows.slots.device
    g = torch.tensor(tuple(decay), device=device)
    torch.manual_seed(tokens)
    qk = torch.randn(tokens, 2, len(g), dim, device=device)
    v = torch.randn(tokens, len(g), values, device=device).to(dtype)
    packed = torch.full((tokens, 3, len(g), values), float("nan"), dtype=dtype, device=device)
    packed[:, 2] = v
    state = torch.randn(len(rows.counts) + 9, len(g), dim, values, device=device)
    for slot, start in zip(rows.slots.tolist(), rows.starts, strict=True):
        if start == 0:
            state[slot] = float("nan")
    for keep in rows.keeps:
        state[keep.slot] = float("nan")
    return qk[:, 0], qk[:, 1], packed[:, 2], state, g


def _case(
    rows: Rows,
    dtype: torch.dtype,
    decay: Iterable[float] = DECAY,
    shape: tuple[int, int] = (8, 8),
    tuned: dict[str, int] | None = None,
) -> None:
    q, k, v, state, g = _tensors(rows, decay, shape, dtype)
    expected_state, got_state = state.clone(), state.clone()
    expected = lightning_attention_reference(q, k, v, expected_state, g, rows)
    if tuned is None:
        got = lightning_attention_triton(q, k, v, got_state, g, rows)
    else:
        got = torch.full(v.shape, float("nan"), device=v.device)
        chunks(q, k, v, got_state, got, g, rows, tuned)
        if len(rows.longer) < len(rows.counts):
            step(q, k, v, got_state, got, g, rows, mixed=True, tuned={"BLOCK_V": 4})
    close(got, expected, LIMIT)
    close(got_state, expected_state, LIMIT)


SMALL = {"CHUNK": 16, "SEGMENT": 32, "BLOCK_V": 16, "num_warps": 4, "num_stages": 2}
BATCHES = [
    ([0], [1]),
    ([5, 0, 40], [1, 1, 1]),
    ([0, 7, 0], [63, 64, 65]),
    ([7, 0, 31, 15], [1, 100, 2, 17]),
    ([9, 0], [32, 33]),
]


@pytest.mark.parametrize(("starts", "counts"), BATCHES)
def test_ragged_rows(starts: list[int], counts: list[int], dtype: torch.dtype, device: torch.device) -> None:
    _case(_rows(starts, counts, device), dtype)


@pytest.mark.parametrize(("starts", "counts"), BATCHES)
def test_many_segments(starts: list[int], counts: list[int], dtype: torch.dtype, device: torch.device) -> None:
    _case(_rows(starts, counts, device), dtype, tuned=SMALL)


@pytest.mark.parametrize("shape", [(16, 32), (33, 20), (1, 3)], ids=str)
def test_shapes(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
    _case(_rows([3, 0, 1], [40, 1, 2], device), dtype, shape=shape, tuned=SMALL)


def test_extreme_decay(device: torch.device) -> None:
    _case(_rows([0, 70, 3], [100, 1, 33], device), torch.float32, (-50.0, -1000.0, 0.0), tuned=SMALL)


@pytest.mark.parametrize("tuned", [SMALL, None], ids=["segments", "one segment"])
def test_kept_states(tuned: dict[str, int] | None, dtype: torch.dtype, device: torch.device) -> None:
    starts, counts = (0, 5, 9, 0), (70, 1, 33, 1)
    places = [(0, 1), (0, 32), (0, 33), (0, 70), (1, 1), (2, 32), (3, 1)]
    keeps = tuple(Keep(row, count, 6 + i) for i, (row, count) in enumerate(places))
    _case(_rows(starts, counts, device, keeps), dtype, tuned=tuned)


def test_kept_states_of_rows_of_one_token(device: torch.device) -> None:
    _case(_rows((4, 0), (1, 1), device, (Keep(0, 1, 6), Keep(1, 1, 7))), torch.float32)


@settings(max_examples=5, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 90), st.sampled_from([1, 1, 2, 31, 32, 65])), min_size=1, max_size=4))
def test_any_mix(rows: list[tuple[int, int]]) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _case(_rows([s for s, _ in rows], [n for _, n in rows], device), torch.float32, tuned=SMALL)


@pytest.mark.parametrize(("starts", "counts"), [((3, 0, 9), (4, 4, 4)), ((5, 0, 2, 7), (1, 3, 8, 1))])
def test_drafts(starts: tuple[int, ...], counts: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    rows = _rows(starts, counts, device)
    q, k, v, state, g = _tensors(rows, DECAY, (12, 20), dtype)
    before = state.clone()
    close(lightning_verify_triton(q, k, v, state, g, rows), lightning_verify_reference(q, k, v, before, g, rows))
    assert torch.equal(state.nan_to_num(), before.nan_to_num())

    # A row whose drafts all fail keeps what its slot holds; even one that has no state yet.
    accepted = torch.tensor([(n - i) % (n + 1) for i, n in enumerate(counts)], dtype=torch.int32, device=device)
    lightning_commit_triton(k, v, state, g, rows, accepted)
    lightning_commit_reference(k, v, before, g, rows, accepted)
    torch.testing.assert_close(state, before, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_a_captured_step_follows_its_refilled_inputs(device: torch.device) -> None:
    rows = _rows([5, 0, 40], [1, 1, 1], device)
    captured = make_rows(rows.slots, rows.positions, (7, 7, 7), rows.counts)
    q, k, v, state, g = _tensors(rows, DECAY, (8, 8), torch.float32)
    expected = lightning_attention_reference(q, k, v, state.clone(), g, rows)
    close(lightning_attention_triton(q, k, v, state, g, captured), expected)


def test_states_in_pieces_are_refused(device: torch.device) -> None:
    rows = _rows([0], [1], device)
    q = torch.zeros(1, 2, 8, device=device)
    state = torch.zeros(3, 2, 8, 16, device=device)[..., :8]
    with pytest.raises(ValueError, match="linear states must be contiguous"):
        lightning_attention_triton(q, q, q, state, torch.zeros(2, device=device), rows)
