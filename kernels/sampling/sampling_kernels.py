"""The kernels of `kernels.sampling.sampling`. A row's vocabulary is processed in chunks of SIZE ids."""

import triton
import triton.language as tl

from kernels.sampling.noise import gumbel, row_key

_NEVER = tl.constexpr(float("-inf"))
_NO_ID = tl.constexpr(2**31 - 1)


@triton.jit
def penalize_kernel(
    logits: tl.tensor,
    history: tl.tensor,
    slots: tl.tensor,
    settings: tl.tensor,
    out: tl.tensor,
    vocab: tl.tensor,
    stride: tl.tensor,
    all_slots: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Logits after penalties, of one row and block of ids."""
    row = tl.program_id(0).to(tl.int64)
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = ids < vocab
    at = row * vocab + ids
    slot = tl.load(slots + row)
    x = tl.load(logits + row * stride + ids, inside, 0.0)
    past = tl.load(history + slot * vocab + ids, inside, 0)
    factor = tl.load(settings + slot)
    factor = tl.where(x > 0, 1.0 / factor, factor)
    x = tl.where((past & 1) != 0, x * factor, x)
    count = past >> 1
    x -= tl.where(count > 0, tl.load(settings + all_slots + slot), 0.0)
    tl.store(out + at, x - tl.load(settings + 2 * all_slots + slot) * count.to(tl.float32), inside)


@triton.jit
def _scaled(logits: tl.tensor, ids: tl.tensor, vocab: tl.tensor, temperature: tl.tensor) -> tl.tensor:
    """A row's logits divided by the temperature, or unchanged if it is 0; -inf beyond the vocabulary."""
    x = tl.load(logits + ids, ids < vocab, _NEVER)
    divisor = tl.where(temperature > 0, temperature, 1.0)
    return tl.div_rn(x, tl.broadcast_to(divisor, x.shape))


@triton.jit
def _key(x: tl.tensor) -> tl.tensor:
    """fp32 to int32 of the same order; its own inverse but for the types."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _value(key: tl.tensor) -> tl.tensor:
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["rows"])
def survey_kernel(
    logits: tl.tensor,
    temperature: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    seeds: tl.tensor,
    positions: tl.tensor,
    stats: tl.tensor,
    best_ids: tl.tensor,
    rows: tl.tensor,
    vocab: tl.tensor,
    chunks: tl.tensor,
    stride: tl.tensor,
    SIZE: tl.constexpr,
    CHUNKS: tl.constexpr,
) -> None:
    """For each of some chunks of a row: the largest logit, the mass relative to it, the best noisy logit, its id."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1) * CHUNKS + tl.arange(0, CHUNKS)
    ids = chunk[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    heat = tl.load(temperature + row)
    x = _scaled(logits + row * stride, ids, vocab, heat)
    largest = tl.max(x, 1)
    # A chunk may contain only -inf, whose difference is NaN.
    mass = tl.sum(tl.where(x > _NEVER, tl.exp(x - largest[:, None]), 0.0), 1)
    noisy = x
    if heat > 0:
        noisy += gumbel(row_key(tl.load(seeds + row), tl.load(positions + row)), ids)
    best = tl.max(noisy, 1)
    best_id = tl.min(tl.where(noisy == best[:, None], ids, _NO_ID), 1)
    at, held = row * chunks + chunk, chunk < chunks
    part = rows * chunks
    tl.store(stats + at, largest, held)
    tl.store(stats + part + at, mass, held)
    tl.store(stats + 2 * part + at, best, held)
    tl.store(best_ids + at, best_id, held)


@triton.jit(do_not_specialize=["rows"])
def narrow_kernel(
    temperature: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    seeds: tl.tensor,
    positions: tl.tensor,
    stats: tl.tensor,
    best_ids: tl.tensor,
    totals: tl.tensor,
    active: tl.tensor,
    out: tl.tensor,
    vocab: tl.tensor,
    chunks: tl.tensor,
    rows: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """A row's first token to try, and which of its chunks can hold anything the filters keep."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.arange(0, BLOCK)
    held = chunk < chunks
    at, part = row * chunks + chunk, rows * chunks
    largest = tl.load(stats + at, held, _NEVER)
    mass = tl.load(stats + part + at, held, 0.0)
    noisy = tl.load(stats + 2 * part + at, held, _NEVER)
    ids = tl.load(best_ids + at, held, _NO_ID)

    best = tl.max(largest, 0)
    total = tl.sum(tl.where(largest > _NEVER, mass * tl.exp(largest - best), 0.0), 0)
    token = tl.min(tl.where(noisy == tl.max(noisy, 0), ids, _NO_ID), 0)
    tl.store(totals + row, best)
    tl.store(totals + rows + row, total)
    # NaN equals nothing, so the bound keeps the token within the vocabulary.
    tl.store(out + row, tl.minimum(token, vocab - 1).to(tl.int64))

    k, p, least = tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row)
    floor = _key(tl.full([], _NEVER, tl.float32)).to(tl.int64)
    if (k > 0) & (k <= chunks):
        # As many chunks hold a logit of at least the k-th largest of their maxima, so the k best do not lie below.
        keys = tl.where(held, _key(largest).to(tl.int64), floor - 1)
        above = tl.max(keys, 0)
        while floor < above:
            middle = floor + (above - floor + 1) // 2
            if tl.sum((keys >= middle).to(tl.int32), 0) >= k:
                floor = middle
            else:
                above = middle - 1
    bound = _value(floor.to(tl.int32))
    if (least > 0) & ((k == 0) | (p >= 1)):
        bound = tl.maximum(bound, best + tl.log(least) - 0.01)
    looked_at = held & (largest >= bound)
    place = tl.cumsum(looked_at.to(tl.int32), 0) - 1
    tl.store(best_ids + part + row * chunks + place, chunk, looked_at)
    tl.store(active + row, tl.sum(looked_at.to(tl.int32), 0))


@triton.jit
def _tile(listed: tl.tensor, first: tl.tensor, count: tl.tensor, SIZE: tl.constexpr, CHUNKS: tl.constexpr) -> tl.tensor:
    """Ids [CHUNKS, SIZE] of the listed chunks from `first` on; beyond any vocabulary where the list ends."""
    index = first + tl.arange(0, CHUNKS)
    chunk = tl.load(listed + index, index < count, 0)
    ids = chunk[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    return tl.where((index < count)[:, None], ids, _NO_ID)


@triton.jit
def _mass_of_best(
    logits: tl.tensor,
    listed: tl.tensor,
    count: tl.tensor,
    vocab: tl.tensor,
    heat: tl.tensor,
    k: tl.tensor,
    best: tl.tensor,
    SIZE: tl.constexpr,
    CHUNKS: tl.constexpr,
) -> tl.tensor:
    """Mass of a row's k best relative to the best: of those at or above the k-th, less what ties with it beyond k."""
    low = _key(tl.full([], _NEVER, tl.float32)).to(tl.int64)
    high = _key(best).to(tl.int64)
    middle = low
    at_least = tl.full([], 0, tl.int64)
    mass = tl.full([], 0.0, tl.float32)
    looking = True
    while looking:
        number = tl.full([], 0, tl.int64)
        weight = tl.full([], 0.0, tl.float32)
        for first in range(0, count, CHUNKS):
            ids = _tile(listed, first, count, SIZE, CHUNKS)
            x = _scaled(logits, ids, vocab, heat)
            above = (_key(x) >= middle) & (ids < vocab)
            number += tl.sum(above.to(tl.int32))
            weight += tl.sum(tl.where(above & (x > _NEVER), tl.exp(x - best), 0.0))
        if (number >= k) | (middle == low):
            low = middle
            at_least = number
            mass = weight
        else:
            high = middle - 1
        middle = low + (high - low + 1) // 2
        looking = (low < high) & (at_least != k)
    return mass - (at_least - k).to(tl.float32) * tl.exp(_value(low.to(tl.int32)) - best)


@triton.jit(do_not_specialize=["rows"])
def choose_kernel(
    logits: tl.tensor,
    temperature: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    seeds: tl.tensor,
    positions: tl.tensor,
    best_ids: tl.tensor,
    totals: tl.tensor,
    active: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    vocab: tl.tensor,
    chunks: tl.tensor,
    stride: tl.tensor,
    SIZE: tl.constexpr,
    CHUNKS: tl.constexpr,
) -> None:
    """A row's token: tries go on until the filters keep one."""
    row = tl.program_id(0).to(tl.int64)
    k, p, least = tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row)
    heat = tl.load(temperature + row)
    k = tl.where(k >= vocab, 0, k)
    if (heat > 0) & ((k > 0) | (p < 1) | (least > 0)):
        best, mass_kept = tl.load(totals + row), tl.load(totals + rows + row)
        listed = best_ids + (rows + row) * chunks
        count = tl.load(active + row)
        logits += row * stride

        if (k > 0) & (p < 1):
            mass_kept = _mass_of_best(logits, listed, count, vocab, heat, k, best, SIZE, CHUNKS)
        key = row_key(tl.load(seeds + row), tl.load(positions + row))
        token = tl.load(out + row)
        trying = True
        while trying:
            pivot = tl.max(_scaled(logits, token + tl.arange(0, 1), vocab, heat), 0)
            number = tl.full([], 0, tl.int64)
            mass = tl.full([], 0.0, tl.float32)
            for first in range(0, count, CHUNKS):
                ids = _tile(listed, first, count, SIZE, CHUNKS)
                x = _scaled(logits, ids, vocab, heat)
                before = (x > pivot) | ((x == pivot) & (ids < token))
                number += tl.sum(before.to(tl.int32))
                mass += tl.sum(tl.where(before, tl.exp(x - best), 0.0))
            kept = ((k == 0) | (number < k)) & ((p >= 1) | (mass < p * mass_kept))
            kept &= (least <= 0) | (tl.exp(pivot - best) >= least)
            trying = (number > 0) & (kept == 0)
            if trying:
                highest = tl.full([], _NEVER, tl.float32)
                next_token = token
                for first in range(0, count, CHUNKS):
                    ids = _tile(listed, first, count, SIZE, CHUNKS)
                    x = _scaled(logits, ids, vocab, heat)
                    before = (x > pivot) | ((x == pivot) & (ids < token))
                    noisy = tl.where(before, x + gumbel(key, ids), _NEVER)
                    top = tl.max(noisy)
                    # Chunks are listed in order, so of equals the first stays.
                    if top > highest:
                        highest = top
                        next_token = tl.min(tl.where(noisy == top, ids, _NO_ID)).to(tl.int64)
                trying = highest > _NEVER
                token = next_token
        tl.store(out + row, token)
