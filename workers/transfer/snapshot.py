"""The only code path that reads and writes a sequence's share of a rank's caches.

Latents are laid token by token, [n, latent_layers, width], so that a range of tokens is one range of bytes and pages
of any size can take it. They are the same on all ranks: in a hand-off each rank ships one shard of the rows.

Nothing here waits for a GPU, and copies on the way are of at most _BLOCK_TOKENS tokens.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from workers.model.batch import Caches

_BLOCK_TOKENS = 8192


def read_latents(caches: Caches, pages: tuple[int, ...], start: int, stop: int) -> Tensor:
    """Latents of positions [start, stop), copied: [stop - start, latent_layers, width], contiguous.

    `pages` hold those positions, the first of them being page start // page_size of the sequence. ValueError if
    they are too few.
    """
    layers, _, size, width = caches.latent.shape
    first, count = start % size, stop - start
    if first + count > len(pages) * size:
        raise ValueError(f"{len(pages)} pages of {size} tokens don't hold positions [{start}, {stop})")
    index = _on_device(pages, caches.latent)
    out = caches.latent.new_empty((count, layers, width))
    for at in range(0, count, _BLOCK_TOKENS):
        begin, end = first + at, first + min(at + _BLOCK_TOKENS, count)
        held = caches.latent.index_select(1, index[begin // size : -(-end // size)]).flatten(1, 2)
        skip = begin % size
        out[at : at + end - begin] = held[:, skip : skip + end - begin].transpose(0, 1)
    return out


def read_shard(caches: Caches, pages: tuple[int, ...], start: int, stop: int, rank: int, size: int) -> Tensor:
    """Rank `rank`'s shard of latents [start, stop), copied, and pages as for `read_latents`.

    [ceil((stop - start) / size), latent_layers, width]: padded with zeros where the ranks before have all rows.
    """
    share = -(-(stop - start) // size)
    first, last = (min(start + r * share, stop) for r in (rank, rank + 1))
    before = start // caches.page_size
    rows = read_latents(caches, pages[first // caches.page_size - before :], first, last)
    return rows if last - first == share else torch.cat([rows, rows.new_zeros(share - (last - first), *rows.shape[1:])])


def write_latents(caches: Caches, pages: tuple[int, ...], latents: Tensor, start: int = 0) -> None:
    """Put latents [n, latent_layers, width] at positions start … start+n-1 of a sequence.

    `pages` are the sequence's from start // page_size on.

    ValueError if the pages are too few, or shape or dtype is not the caches'.
    """
    layers, _, size, width = caches.latent.shape
    count = latents.shape[0]
    if latents.shape[1:] != (layers, width) or latents.dtype != caches.latent.dtype:
        raise ValueError(
            f"latents of shape {tuple(latents.shape)} {latents.dtype} don't fit caches of {layers} layers, "
            f"width {width}, {caches.latent.dtype}"
        )
    first = start % size
    if first + count > len(pages) * size:
        raise ValueError(f"{len(pages)} pages of {size} tokens don't hold {count} latents from {start} on")
    positions = torch.arange(first, first + count, device=caches.latent.device)
    page = _on_device(pages, caches.latent)[positions // size]
    caches.latent[:, page, positions % size] = latents.transpose(0, 1)


def write_shards(
    caches: Caches,
    pages: tuple[int, ...],
    start: int,
    parts: Iterable[tuple[int, Tensor]],
    skip: int,
    size: int,
    split: int,
    gather: Callable[[Tensor], Tensor],
) -> None:
    """Put a snapshot's latents from position `start` on into `pages`, the sequence's from start // page_size on.

    parts: (n, this rank's shard of n latents) in order of position, the first of them `skip` tokens before `start`.
    split: ranks of the worker that made the snapshot, each of which had ceil(n / split) rows. Where they are fewer,
    `size / split` ranks here share each one's rows evenly; where they are more, a rank here has those of several.
    gather: concatenates all `size` ranks' equal-shaped tensors along the first dimension. ValueError as
    `write_latents`, or if shards are too short.
    """
    at = start - skip
    for count, shard in parts:
        for offset, rows in _gathered(count, shard, size, split, gather):
            first = max(at + offset, start)
            kept = rows[first - at - offset :]
            if len(kept):
                write_latents(caches, pages[first // caches.page_size - start // caches.page_size :], kept, first)
        at += count


def _gathered(
    count: int, shard: Tensor, size: int, split: int, gather: Callable[[Tensor], Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """All ranks' rows of a part of `count` latents, and how far into the part they begin."""
    share = shard.shape[0]
    groups = min(size, split)
    each, whole = size // groups, -(-count // split) * (split // groups)
    if share * each < whole:
        raise ValueError(f"{size} shards of {share} rows are fewer than the {count} latents of the part")
    step = max(1, _BLOCK_TOKENS // size)
    for begin in range(0, share, step):
        piece = shard[begin : begin + step]
        for rank, rows in enumerate(torch.split(gather(piece), len(piece))):
            offset = rank // each * whole + rank % each * share + begin
            stop = min((rank // each + 1) * whole, count)
            if offset < stop:
                yield offset, rows[: stop - offset]


def _on_device(pages: tuple[int, ...], like: Tensor) -> Tensor:
    """Copy from the host without waiting for the device's work."""
    return torch.tensor(pages, dtype=torch.int64).to(like.device, non_blocking=True)


def read_state(caches: Caches, slot: int) -> Tensor:
    """A copy of a slot's linear state: [linear_layers, heads/tp, head_dim, head_dim]."""
    return caches.state[:, slot].clone(memory_format=torch.contiguous_format)


def write_state(caches: Caches, slot: int, state: Tensor) -> None:
    """Put a linear state into a slot; ValueError if shape or dtype is not the caches'."""
    own = caches.state[:, slot]
    if state.shape != own.shape or state.dtype != own.dtype:
        raise ValueError(
            f"a state of shape {tuple(state.shape)} {state.dtype} doesn't fit a slot of {tuple(own.shape)} {own.dtype}"
        )
    own.copy_(state)


def copy_state(caches: Caches, slot: int, to_slot: int) -> None:
    """Copy a slot's linear state to another."""
    caches.state[:, to_slot] = caches.state[:, slot]


def copy_page(caches: Caches, page: int, to_page: int) -> None:
    """Copy a page of latents to another."""
    caches.latent[:, to_page] = caches.latent[:, page]
