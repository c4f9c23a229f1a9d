"""Tests the positions of rows, blocks and pages in a batch."""

import pytest
import torch

from kernels import Keep, Rows, make_pages, make_rows


def _rows(slots: list[int], starts: tuple[int, ...], counts: tuple[int, ...]) -> Rows:
    positions = torch.tensor([s + i for s, n in zip(starts, counts, strict=True) for i in range(n)])
    return make_rows(torch.tensor(slots), positions, starts, counts)


def test_rows_of_one_token_are_separated_from_longer_ones() -> None:
    rows = _rows([4, 2, 7, 0], (3, 0, 0, 9), (1, 5, 1, 1))
    assert rows.offsets == (0, 1, 6, 7)
    assert rows.longer == (1,)
    singles = rows.singles
    assert singles.tokens is not None
    assert singles.tokens.tolist() == [0, 6, 7]
    assert singles.slots.tolist() == [4, 7, 0]
    assert singles.fresh is not None
    assert singles.fresh.tolist() == [False, True, False]


def test_only_decoding_rows_need_no_gather() -> None:
    rows = _rows([1, 0], (3, 8), (1, 1))
    assert rows.singles.tokens is None
    assert rows.singles.fresh is None
    assert rows.longer == ()


def test_pages_are_those_up_to_the_token_and_no_more() -> None:
    table = torch.tensor([[5, 6, 7], [8, 9, 3], [1, 2, 4]], dtype=torch.int32)
    pages = make_pages(_rows([2, 0, 1], (3, 2, 8), (1, 4, 1)), table, 4)
    assert pages.write_at.tolist() == [7, 22, 23, 24, 25, 12]
    assert [(row, ids.tolist()) for row, ids in pages.alone] == [(1, [5, 6])]
    singles = pages.together
    assert singles is not None
    assert singles.ids.tolist() == [1, 8, 9, 3]
    assert singles.rows.tolist() == [0, 1, 1, 1]
    assert singles.last.tolist() == [0, 3]
    assert singles.unused.sum(1).tolist() == [0, 0, 0, 3]


def test_the_only_row_is_computed_alone() -> None:
    pages = make_pages(_rows([1], (5,), (1,)), torch.tensor([[9, 9], [4, 2]], dtype=torch.int32), 4)
    assert [(row, ids.tolist()) for row, ids in pages.alone] == [(0, [4, 2])]
    assert pages.together is None


@pytest.mark.parametrize("counts", [(1, 1, 1), (5, 5), (1, 9, 4, 5, 1), (8,), (4, 13)])
def test_blocks_cover_every_token_once(counts: tuple[int, ...]) -> None:
    starts = tuple(3 * i for i in range(len(counts)))
    rows = _rows(list(range(len(counts))), starts, counts)
    blocks = rows.blocks(4)
    expected = [(row, first) for row, n in enumerate(counts) for first in range(0, n, 4)]
    assert list(zip(blocks.rows.tolist(), blocks.firsts.tolist(), strict=True)) == expected
    several = [(row, first) for row, first in expected if counts[row] > 4]
    assert blocks.several == len(several)
    bases = [several.index((row, 0)) if n > 4 else -1 for row, n in enumerate(counts)]
    assert blocks.bases.tolist() == bases
    assert rows.token_offsets.tolist() == [*rows.offsets, sum(counts)]
    assert rows.row_starts.tolist() == list(starts)


def test_inputs_of_kernels_for_equal_rows_follow_refilled_tensors() -> None:
    slots, positions = torch.tensor([4, 5]), torch.tensor([3, 8])
    rows = make_rows(slots, positions, (0, 0), (1, 1))
    positions += 7
    assert rows.row_starts.tolist() == [10, 15]


def test_a_state_beyond_its_row_cannot_be_kept() -> None:
    with pytest.raises(ValueError, match=r"row 0 has 2 tokens; its state after 3 can't be kept"):
        make_rows(torch.tensor([0]), torch.tensor([0, 1]), (0,), (2,), (Keep(0, 3, 1),))
