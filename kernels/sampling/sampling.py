"""Samples tokens: penalties, filters and seeded noise over a batch's logits.

A row's token depends on its own logits, settings, seed and position alone, never on the rows beside it.
"""

import torch
import triton
from torch import Tensor

from kernels.dispatch import dispatch
from kernels.sampling.noise import gumbel_noise
from kernels.sampling.sampling_kernels import choose_kernel, narrow_kernel, penalize_kernel, survey_kernel
from kernels.tuning import Config, config


def penalize_reference(logits: Tensor, history: Tensor, slots: Tensor, settings: Tensor) -> Tensor:
    """Logits [R, V] fp32 after penalties.

    history: [slots, V] int32, of each sequence and id: twice how often it stands in the output, plus 1 if it stands in
    prompt or output. slots: [R] int64, each row's. settings: [3, slots] fp32: repetition, by which logits of ids that
    occurred are divided where positive and multiplied where negative; presence, taken from those in the output; and
    frequency, taken from them times how often. 1, 0 and 0 leave a row unchanged.
    """
    past = history.index_select(0, slots)
    repetition, presence, frequency = settings.index_select(1, slots)[..., None]
    factor = torch.where(logits > 0, 1.0 / repetition, repetition)
    logits = torch.where((past & 1).bool(), logits * factor, logits)
    counts = past >> 1
    penalized: Tensor = logits - presence * (counts > 0) - frequency * counts
    return penalized


def penalize_triton(
    logits: Tensor, history: Tensor, slots: Tensor, settings: Tensor, tuned: Config | None = None
) -> Tensor:
    """One program per row and block of ids."""
    rows, vocab = logits.shape
    out = torch.empty(rows, vocab, dtype=logits.dtype, device=logits.device)
    if rows:
        launch = tuned or config("penalize", (rows, vocab), {"BLOCK": 1024, "num_warps": 4})
        penalize_kernel[(rows, triton.cdiv(vocab, launch["BLOCK"]))](
            logits, history, slots, settings, out, vocab, logits.stride(0), settings.shape[1], **launch
        )
    return out


def filtered(logits: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Logits [R, V], already divided by temperature, with what the filters drop at -inf.

    top_k [R] int64 (0: off), then top_p [R] over what is left, then min_p [R] relative to the best.
    At least the best token stays.
    """
    vocab = logits.shape[-1]
    ordered, order = torch.sort(logits, dim=-1, descending=True, stable=True)
    rank = torch.arange(vocab, device=logits.device)
    keep_k = torch.where(top_k > 0, top_k, vocab)[:, None]
    ordered = ordered.masked_fill(rank >= keep_k, float("-inf"))
    probs = torch.softmax(ordered, dim=-1)
    before = torch.cumsum(probs, dim=-1) - probs
    # A row with top_p 1 keeps all ids, even if the running sum is rounded.
    drop = (before >= top_p[:, None]) & (top_p < 1.0)[:, None]
    drop |= probs < min_p[:, None] * probs[:, :1]
    drop[:, 0] = False
    ordered = ordered.masked_fill(drop, float("-inf"))
    return torch.empty_like(logits).scatter_(-1, order, ordered)


def sample_reference(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """Token ids [R] int64 from logits [R, V] fp32.

    temperature: [R] fp32, 0 for the best token without noise. top_k: [R] int64; top_p, min_p: [R] fp32; 0, 1 and
    0 turn them off. seeds, positions: [R] int64.
    Gumbel-max: the argmax of logits/temperature + noise is a draw from their softmax.
    """
    drawn = temperature > 0
    scaled = logits / torch.where(drawn, temperature, 1.0)[:, None]
    if bool(((top_k > 0) | (top_p < 1.0) | (min_p > 0.0)).any()):
        scaled = filtered(scaled, top_k, top_p, min_p)
    return torch.argmax(scaled + gumbel_noise(seeds, positions, logits.shape[-1]) * drawn[:, None], dim=-1)


def sample_triton(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    tuned: Config | None = None,
) -> Tensor:
    """Without sorting. What the filters keep is always a run from the front of the descending order, so:

    the best noisy token of all is the answer if the filters keep it. If they drop it they drop all behind it too,
    and the best noisy token before it is the next to try. Each try takes one pass, and leaves on average a fraction
    of the probability that was left; an unfiltered row needs none beyond the first, which the whole GPU shares.
    Of equal logits the lower id comes first; sums differ from the reference's in their last bits.
    """
    rows, vocab = logits.shape
    device = logits.device
    out = torch.empty(rows, dtype=torch.int64, device=device)
    if not rows:
        return out
    launch = dict(tuned or config("sample", (rows, vocab), {"SIZE": 512, "CHUNKS": 4, "WIDTH": 8, "num_warps": 4}))
    # The second kernel holds one value per chunk and row.
    size = max(launch["SIZE"], triton.next_power_of_2(triton.cdiv(vocab, 2048)))
    chunks = triton.cdiv(vocab, size)
    # For each chunk: the largest logit, the mass of all ids relative to it, the best noisy logit and its id; then the
    # chunks to examine.
    stats = torch.empty(3, rows, chunks, dtype=torch.float32, device=device)
    ids = torch.empty(2, rows, chunks, dtype=torch.int32, device=device)
    # For each row: the largest logit, the mass of all ids relative to it; then the number of chunks to examine.
    totals = torch.empty(2, rows, dtype=torch.float32, device=device)
    active = torch.empty(rows, dtype=torch.int32, device=device)
    shape = {"vocab": vocab, "chunks": chunks, "stride": logits.stride(0), "SIZE": size}
    settings = (temperature, top_k, top_p, min_p, seeds, positions)

    grid = (rows, triton.cdiv(chunks, launch["CHUNKS"]))
    survey_kernel[grid](
        logits, *settings, stats, ids, rows=rows, CHUNKS=launch["CHUNKS"], num_warps=launch["num_warps"], **shape
    )
    block = triton.next_power_of_2(chunks)
    narrow_kernel[(rows,)](*settings, stats, ids, totals, active, out, vocab, chunks, rows, BLOCK=block, num_warps=4)
    choose_kernel[(rows,)](
        logits, *settings, ids, totals, active, out, rows=rows, CHUNKS=launch["WIDTH"], num_warps=8, **shape
    )
    return out


penalize = dispatch(penalize_reference, penalize_triton)
sample = dispatch(sample_reference, sample_triton)
