"""Where rows and pages lie."""

import torch

from kernels import make_pages, make_rows


def test_rows_of_one_token_are_told_from_longer_ones() -> None:
    rows = make_rows(torch.tensor([4, 2, 7, 0]), (3, 0, 0, 9), (1, 5, 1, 1))
    assert rows.offsets == (0, 1, 6, 7)
    assert rows.longer == (1,)
    assert rows.single_tokens is not None
    assert rows.single_tokens.tolist() == [0, 6, 7]
    assert rows.single_slots.tolist() == [4, 7, 0]
    assert rows.single_fresh is not None
    assert rows.single_fresh.tolist() == [False, True, False]


def test_only_decoding_rows_need_no_gather() -> None:
    rows = make_rows(torch.tensor([1, 0]), (3, 8), (1, 1))
    assert rows.single_tokens is None
    assert rows.single_fresh is None
    assert rows.longer == ()


def test_pages_are_those_up_to_the_token_and_no_more() -> None:
    table = torch.tensor([[5, 6, 7], [8, 9, 3], [1, 2, 4]], dtype=torch.int32)
    rows = make_rows(torch.tensor([2, 0, 1]), (3, 2, 8), (1, 4, 1))
    positions = torch.tensor([3, 2, 3, 4, 5, 8])
    pages = make_pages(rows, positions, table, 4)
    assert pages.write_at.tolist() == [7, 22, 23, 24, 25, 12]
    assert [(row, ids.tolist()) for row, ids in pages.alone] == [(1, [5, 6])]
    singles = pages.together
    assert singles is not None
    assert singles.ids.tolist() == [1, 8, 9, 3]
    assert singles.rows.tolist() == [0, 1, 1, 1]
    assert singles.last.tolist() == [0, 3]
    assert singles.unused.sum(1).tolist() == [0, 0, 0, 3]


def test_the_only_row_is_computed_alone() -> None:
    rows = make_rows(torch.tensor([1]), (5,), (1,))
    pages = make_pages(rows, torch.tensor([5]), torch.tensor([[9, 9], [4, 2]], dtype=torch.int32), 4)
    assert [(row, ids.tolist()) for row, ids in pages.alone] == [(0, [4, 2])]
    assert pages.together is None
