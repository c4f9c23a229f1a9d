"""Snapshots go through caches of any page size, and through shards, without a bit changing."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.model.batch import Caches
from workers.transfer.snapshot import join_rows, read_latents, read_state, shard_rows, write_latents, write_state

LAYERS, WIDTH = 3, 5


def caches(page_size: int, dtype: torch.dtype = torch.bfloat16, pages: int = 40, seed: int = 0) -> Caches:
    generator = torch.Generator().manual_seed(seed)
    return Caches(
        torch.randn(LAYERS, pages, page_size, WIDTH, generator=generator).to(dtype),
        torch.randn(4, 6, 2, 3, 3, generator=generator),
    )


def test_read_follows_the_page_table() -> None:
    own = caches(4)
    read = read_latents(own, (7, 2, 9), 5, 14)  # positions 5..13, so pages 1, 2, 3 of the sequence
    places = [(7, 1), (7, 2), (7, 3), (2, 0), (2, 1), (2, 2), (2, 3), (9, 0), (9, 1)]
    expected = torch.stack([own.latent[:, page, offset] for page, offset in places])
    assert torch.equal(read, expected)
    assert read.is_contiguous()


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_parts_sharded_joined_and_written_are_the_whole(data: st.DataObject) -> None:
    tokens = data.draw(st.integers(1, 60))
    cuts = sorted(data.draw(st.sets(st.integers(1, tokens), max_size=4)) | {0, tokens})
    size = data.draw(st.sampled_from([1, 2, 3, 4]))
    source, target = (caches(data.draw(st.integers(1, 9)), pages=60, seed=s) for s in (1, 2))
    source_pages, target_pages = (
        tuple(data.draw(st.permutations(range(60)))[: -(-tokens // c.page_size)]) for c in (source, target)
    )
    untouched = target.latent.clone()
    parts = []
    for start, stop in itertools.pairwise(cuts):
        pages = source_pages[start // source.page_size : -(-stop // source.page_size)]
        part = read_latents(source, pages, start, stop)
        shards = [shard_rows(part, rank, size) for rank in range(size)]
        assert {s.shape[0] for s in shards} == {-(-(stop - start) // size)}
        parts.append(join_rows(torch.cat(shards), stop - start))
    write_latents(target, target_pages, torch.cat(parts))
    whole = read_latents(source, source_pages, 0, tokens)
    assert torch.equal(read_latents(target, target_pages, 0, tokens), whole)
    for page in set(range(60)) - set(target_pages):
        assert torch.equal(target.latent[:, page], untouched[:, page])


def test_state_round_trip_and_neighbours() -> None:
    source, target = caches(4, seed=1), caches(8, seed=2)
    before = target.state.clone()
    state = read_state(source, 2)
    source.state.zero_()  # what was read is a copy
    write_state(target, 5, state)
    assert torch.equal(read_state(target, 5), state)
    assert state.abs().sum() > 0
    assert torch.equal(target.state[:, :5], before[:, :5])


def test_what_does_not_fit_is_refused() -> None:
    own = caches(4)
    with pytest.raises(ValueError, match="2 pages of 4 tokens don't hold positions"):
        read_latents(own, (0, 1), 3, 9)
    with pytest.raises(ValueError, match="2 pages of 4 tokens don't hold 9 latents"):
        write_latents(own, (0, 1), torch.zeros(9, LAYERS, WIDTH, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="don't fit caches"):
        write_latents(own, (0, 1), torch.zeros(3, LAYERS, WIDTH))
    with pytest.raises(ValueError, match="doesn't fit a slot"):
        write_state(own, 0, torch.zeros(4, 2, 3, 3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="doesn't fit a slot"):
        write_state(own, 0, torch.zeros(4, 1, 3, 3))
    with pytest.raises(ValueError, match="fewer than"):
        join_rows(torch.zeros(4, 1), 5)
