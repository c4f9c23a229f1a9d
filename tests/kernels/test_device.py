"""Tests that launches fit the card: how many programs fill it, and which formats it refuses."""

from typing import Any

import pytest
import torch

import kernels.mla.attention
from kernels import device, make_pages, make_rows
from kernels.device import H200, Device, without_fp8
from kernels.linear.linear import _default as linear_launch
from kernels.linear.tiles import FP8_BOTH
from kernels.mla.attention import mla_attention_triton
from kernels.mla.forms import Widths, forms
from tests.kernels.compile import CARDS
from tests.workers.model_rig import GOLDEN
from workers.collectives import Solo
from workers.model.config import LingConfig
from workers.model.files import WeightError
from workers.model.ling import LingModel
from workers.model.weights import load_weights

H20 = Device("NVIDIA H20", (9, 0), H200.shared, 78)
META = torch.device("meta")


class _Launches:
    """A fake kernel that records the grids with which it is launched."""

    def __init__(self) -> None:
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        self.grids.append(grid)
        return lambda *args, **kwargs: None


def _programs(
    starts: tuple[int, ...], counts: tuple[int, ...], card: Device, monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """The number of programs of each launch of absorbed attention in a step with 32 heads."""
    launches = _Launches()
    monkeypatch.setattr(kernels.mla.attention, "_attention_kernel", launches)
    monkeypatch.setattr(kernels.mla.attention, "_merge_kernel", _Launches())
    monkeypatch.setattr(device, "assumed", card)
    slots, positions = (torch.empty(n, dtype=torch.int64, device=META) for n in (len(starts), sum(counts)))
    rows = make_rows(slots, positions, starts, counts)
    pages = make_pages(rows, torch.empty(128, 2048, dtype=torch.int32, device=META), 64)
    pool = torch.empty(10, 64, 576, dtype=torch.bfloat16, device=META)
    for short in forms(rows, pages, Widths(128, 64, 128, 512)).short:
        q = torch.empty(sum(short.rows.counts), 32, 576, dtype=torch.bfloat16, device=META)
        mla_attention_triton(q, pool, 512, 0.07, short.rows, short.pages)
    return [a * b * c for a, b, c in launches.grids]


@pytest.mark.parametrize("card", [H200, H20], ids=lambda c: c.name)
@pytest.mark.parametrize("batch", [1, 3, 8, 16, 32, 64])
def test_decoding_rows_fill_the_card_in_one_wave(batch: int, card: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    (programs,) = _programs((8000,) * batch, (1,) * batch, card, monkeypatch)
    assert card.multiprocessors / 2 < programs <= card.multiprocessors


def test_a_decoding_row_beside_prompts_is_split_as_if_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _programs((130_000, 0, 0), (1, 4096, 2048), H200, monkeypatch) == [132]
    decoding, drafts = _programs((130_000, 90, 0), (1, 4, 4096), H200, monkeypatch)
    assert decoding == 132
    assert drafts <= 132


@pytest.mark.parametrize("tokens", [65, 128])
@pytest.mark.parametrize("outputs", [4096, 16384])
def test_a_linear_of_a_hundred_tokens_fills_the_card(tokens: int, outputs: int) -> None:
    chosen = linear_launch(H200, FP8_BOTH.value, 2, tokens, outputs, 4096)
    programs = -(-outputs // chosen["BLOCK_N"]) * chosen["SPLIT"]
    assert 0.9 * H200.multiprocessors < programs <= 2 * H200.multiprocessors


def test_fp8_weights_are_refused_by_the_card_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "assumed", CARDS[80])
    config = LingConfig.load(GOLDEN / "fp8", {})
    model = LingModel(config, Solo(), torch.device("cpu"), torch.float32)
    with pytest.raises(WeightError, match=r"A100 has no 8-bit floats .* serve the BF16 or INT4 release on it, or FP8"):
        load_weights(model, GOLDEN / "fp8")
    assert [n for n, card in CARDS.items() if without_fp8(card)] == [80]


def test_fp32_attention_is_refused_where_its_tiles_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "assumed", CARDS[120])
    slots = torch.empty(1, dtype=torch.int64, device=META)
    rows = make_rows(slots, slots, (9,), (1,))
    pages = make_pages(rows, torch.empty(4, 8, dtype=torch.int32, device=META), 64)
    q, pool = torch.empty(1, 8, 576, device=META), torch.empty(10, 64, 576, device=META)
    with pytest.raises(ValueError, match=r"RTX PRO 6000 gives a block 101376 bytes .* serve in bfloat16"):
        mla_attention_triton(q, pool, 512, 0.07, rows, pages)
