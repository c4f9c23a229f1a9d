"""The one code path that reads and writes a sequence's share of a rank's caches.

Latents are laid token by token, [n, mla_layers, width], so that a range of tokens is one range of bytes and pages
of any size can take it. They are the same on all ranks: in a hand-off each rank ships one shard of the rows.
"""

import torch
from torch import Tensor

from workers.model.batch import Caches


def read_latents(caches: Caches, pages: tuple[int, ...], start: int, stop: int) -> Tensor:
    """Latents of positions [start, stop), copied: [stop - start, mla_layers, width], contiguous.

    `pages` hold those positions, the first of them being page start // page_size of the sequence. ValueError if
    they are too few.
    """
    size = caches.page_size
    first = start % size
    count = stop - start
    if first + count > len(pages) * size:
        raise ValueError(f"{len(pages)} pages of {size} tokens don't hold positions [{start}, {stop})")
    index = torch.tensor(pages, dtype=torch.int64, device=caches.latent.device)
    rows = caches.latent.index_select(1, index).flatten(1, 2)[:, first : first + count]
    out = rows.new_empty((count, rows.shape[0], rows.shape[2]))
    return out.copy_(rows.transpose(0, 1))


def write_latents(caches: Caches, pages: tuple[int, ...], latents: Tensor, start: int = 0) -> None:
    """Put latents [n, mla_layers, width] at positions start … start+n-1 of a sequence.

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
    device = caches.latent.device
    positions = torch.arange(first, first + count, device=device)
    page = torch.tensor(pages, dtype=torch.int64, device=device)[positions // size]
    caches.latent[:, page, positions % size] = latents.to(device).transpose(0, 1)


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


def shard_rows(latents: Tensor, rank: int, size: int) -> Tensor:
    """Rank `rank`'s rows of latents [n, ...]: ceil(n / size) of them, padded with zeros past the end."""
    share = -(-latents.shape[0] // size)
    rows = latents[rank * share : (rank + 1) * share]
    if rows.shape[0] == share:
        return rows
    out = latents.new_zeros((share, *latents.shape[1:]))
    out[: rows.shape[0]] = rows
    return out


def join_rows(gathered: Tensor, n: int) -> Tensor:
    """The `n` rows whose shards, all ranks' end to end, are `gathered` [size * ceil(n / size), ...]."""
    if gathered.shape[0] < n:
        raise ValueError(f"{gathered.shape[0]} gathered rows are fewer than the {n} of the part")
    return gathered[:n]
