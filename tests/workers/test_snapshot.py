"""Tests that snapshots pass bit for bit through caches of any page size and through shards."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.model_rig import ThreadCollectives, ThreadGroup
from workers.model.batch import Caches
from workers.transfer import snapshot
from workers.transfer.payload import shares_of
from workers.transfer.snapshot import (
    read_latents,
    read_shard,
    read_state,
    write_latents,
    write_shards,
    write_state,
)

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
    size, split = data.draw(st.sampled_from([(1, 1), (2, 2), (3, 3), (4, 4), (1, 4), (2, 4), (2, 8), (4, 1), (4, 2)]))
    source, target = (caches(data.draw(st.integers(1, 9)), pages=60, seed=s) for s in (1, 2))
    source_pages, target_pages = (
        tuple(data.draw(st.permutations(range(60)))[: -(-tokens // c.page_size)]) for c in (source, target)
    )
    begin = data.draw(st.integers(0, tokens - 1))
    block = data.draw(st.integers(1, 20))
    untouched = target.latent.clone()
    group = ThreadGroup(size)
    largest: list[int] = []

    def install(rank: int) -> Caches:
        """Simulate a rank of both workers: it sends its share of each part, and joins all ranks' shares."""
        parts = []
        for start, stop in itertools.pairwise(cuts):
            pages = source_pages[start // source.page_size : -(-stop // source.page_size)]
            first, count = rank * split // size, max(1, split // size)
            shards = [read_shard(source, pages, start, stop, n, split) for n in range(first, first + count)]
            assert [len(shard) for shard in shards] == [-(-(stop - start) // split)] * count
            shares = list(shares_of(torch.cat(shards), None, max(1, size // split)))
            parts.append((stop - start, shares[rank % len(shares)][0]))
        own = Caches(target.latent.clone(), target.state)
        collectives = ThreadCollectives(group, rank)

        def gather(piece: torch.Tensor) -> torch.Tensor:
            largest.append(len(piece) * size)
            return collectives.all_gather(piece, 0)

        # What lies before `begin` is on the pages already and stays.
        own.latent[:, list(target_pages)] = torch.where(
            torch.arange(len(target_pages) * own.page_size).view(1, -1, own.page_size, 1) < begin,
            own.latent[:, list(target_pages)],
            torch.nan,
        )
        write_shards(own, target_pages[begin // own.page_size :], begin, parts, begin, size, split, gather)
        return own

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(size) as pool:
        patch.setattr(snapshot, "_BLOCK_TOKENS", block)
        ranks = list(pool.map(install, range(size)))
        whole = read_latents(source, source_pages, 0, tokens)
    # However long a snapshot is, copies of it on the way are short.
    assert max(largest) <= max(block, size)
    for own in ranks:
        got = read_latents(own, target_pages, 0, tokens)
        assert torch.equal(got[begin:], whole[begin:])
        assert torch.equal(got[:begin], read_latents(target, target_pages, 0, tokens)[:begin])
        for page in set(range(60)) - set(target_pages):
            assert torch.equal(own.latent[:, page], untouched[:, page])


def test_state_round_trip_and_neighbours() -> None:
    source, target = caches(4, seed=1), caches(8, seed=2)
    before = target.state.clone()
    state = read_state(source, 2)
    source.state.zero_()  # what was read is a copy
    write_state(target, 5, state)
    assert torch.equal(read_state(target, 5), state)
    assert state.abs().sum() > 0
    assert torch.equal(target.state[:, :5], before[:, :5])


def test_a_snapshot_that_does_not_fit_is_refused() -> None:
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
    with pytest.raises(ValueError, match="2 shards of 2 rows are fewer than the 5 latents"):
        write_shards(own, (0, 1), 0, [(5, torch.zeros(2, LAYERS, WIDTH))], 0, 2, 2, lambda shard: shard)
