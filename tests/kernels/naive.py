"""Implements operations as loops over tokens in fp64, and makes random ragged batches."""

import random

import torch
from torch import Tensor

from kernels import Pages, Rows, make_pages, make_rows

PAGE = 16


def paged_batch(starts: list[int], counts: list[int], seed: int) -> tuple[Rows, Pages, Tensor, int]:
    """Rows and pages of a batch in shuffled slots and pages, the page table, and how many pages there are.

    The last page belongs to nobody.
    """
    draw = random.Random(seed)
    slots = draw.sample(range(len(starts) + 3), len(starts))
    needs = [-(-(s + n) // PAGE) for s, n in zip(starts, counts, strict=True)]
    free = list(range(sum(needs)))
    draw.shuffle(free)
    table = torch.full((len(starts) + 3, max(needs) + 2), sum(needs), dtype=torch.int32)
    for slot, need in zip(slots, needs, strict=True):
        table[slot, :need] = torch.tensor([free.pop() for _ in range(need)], dtype=torch.int32)
    positions = torch.tensor([p for s, n in zip(starts, counts, strict=True) for p in range(s, s + n)])
    rows = make_rows(torch.tensor(slots), positions, tuple(starts), tuple(counts))
    return rows, make_pages(rows, table, PAGE), table, sum(needs) + 1


def lightning(q: Tensor, k: Tensor, v: Tensor, state: Tensor, log_decay: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """Linear attention token by token: the outputs, and the states of all slots afterwards."""
    q, k, v, state, decay = (x.double() for x in (q, k, v, state, log_decay))
    out, state, decay = torch.empty_like(v), state.clone(), decay.exp()[:, None, None]
    for i, slot in enumerate(rows.slots.tolist()):
        current = state[slot] if rows.starts[i] else torch.zeros_like(state[slot])
        for t in range(rows.offsets[i], rows.offsets[i] + rows.counts[i]):
            current = decay * current + k[t, :, :, None] * v[t, :, None, :]
            out[t] = torch.einsum("hk,hkv->hv", q[t] * q.shape[-1] ** -0.5, current)
        state[slot] = current
    return out, state


def latent_attention(q: Tensor, pool: Tensor, rank: int, scale: float, rows: Rows, table: Tensor) -> Tensor:
    """Latent attention: softmax over each token's own and earlier positions, one head and token at a time."""
    q, pool = q.double(), pool.double()
    out = torch.empty(*q.shape[:2], rank, dtype=torch.float64)
    for i, slot in enumerate(rows.slots.tolist()):
        for n in range(rows.counts[i]):
            places = range(rows.starts[i] + n + 1)
            keys = torch.stack([pool[table[slot, p // PAGE], p % PAGE] for p in places])
            t = rows.offsets[i] + n
            out[t] = torch.softmax(q[t] @ keys.T * scale, -1) @ keys[:, :rank]
    return out
