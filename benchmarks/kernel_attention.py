"""Benchmark rows of both kinds of attention, whose kernels read a sequence's state or latents."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.kernel_case import EPS, STREAMING, Call, Case, Sizes, angles, random
from kernels import Rows, make_pages, make_rows
from kernels.lightning.attention import lightning_attention_triton
from kernels.lightning.layer import lightning_layer_triton
from kernels.lightning.verify import lightning_commit_triton, lightning_verify_triton
from kernels.mla.attention import mla_attention_triton
from kernels.mla.forms import LongRow
from kernels.mla.prefill import mla_prefill_triton

# Tokens of a chunk: within it a prompt's tokens are multiplied with each other, and with the state only once.
_CHUNK = 64


@dataclass(frozen=True)
class _Linear:
    """The inputs of a linear-attention layer. q, k: fp32 and v: bf16, each [T, H, d], laid out as in the model."""

    q: Tensor
    k: Tensor
    v: Tensor
    state: Tensor
    decay: Tensor
    rows: Rows


def _linear(s: Sizes, device: torch.device, rows: int, count: int, start: int) -> _Linear:
    tokens = rows * count
    qk = random(device, tokens, 2, s.heads, s.head, dtype=torch.float32)
    state = random(device, rows, s.heads, s.head, s.head, dtype=torch.float32)
    decay = -(2.0 ** (-8.0 * torch.arange(1, s.heads + 1, device=device) / s.heads))
    positions = (start + torch.arange(count, device=device)).repeat(rows)
    batch = make_rows(torch.arange(rows, device=device), positions, (start,) * rows, (count,) * rows)
    return _Linear(qk[:, 0], qk[:, 1], random(device, tokens, 3, s.heads, s.head)[:, 2], state, decay, batch)


def lightning(s: Sizes) -> Iterator[Case]:
    """Yield the rows of linear attention: decoding single tokens, verifying drafts, a prompt."""
    state, token = 4 * s.heads * s.head**2, s.heads * s.head

    for n in s.decode:

        def step(device: torch.device, n: int = n) -> tuple[Call, None]:
            i = _linear(s, device, n, 1, 5)
            return (lambda: lightning_attention_triton(i.q, i.k, i.v, i.state, i.decay, i.rows)), None

        yield Case("lightning decode", n, n * (2 * state + 14 * token), n * state, STREAMING, step, "fp32")

        def layer(device: torch.device, n: int = n) -> tuple[Call, None]:
            i = _linear(s, device, n, 1, 5)
            projected, weight = random(device, n, 4, s.heads, s.head), random(device, s.heads * s.head)
            fixed = (random(device, 2, 1, s.head), weight, *angles(device, n, s.head // 4), s.norm_groups, EPS)
            return (lambda: lightning_layer_triton(projected, *fixed, i.state, i.decay, i.rows)), None

        moved, launches = n * (2 * state + 10 * token), 1 if n <= 16 else 3
        yield Case("norms, rope, lightning, gate", n, moved, n * state, STREAMING, layer, "fp32", launches=launches)

    n, drafts = s.decode[-1], s.drafts + 1

    def verify(device: torch.device) -> tuple[Call, None]:
        i = _linear(s, device, n, drafts, 5)
        return (lambda: lightning_verify_triton(i.q, i.k, i.v, i.state, i.decay, i.rows)), None

    def commit(device: torch.device) -> tuple[Call, None]:
        i = _linear(s, device, n, drafts, 5)
        accepted = torch.full((n,), drafts - 1, device=device)
        return (lambda: lightning_commit_triton(i.k, i.v, i.state, i.decay, i.rows, accepted)), None

    moved = n * (state + drafts * 14 * token)
    yield Case(f"lightning verify of {drafts}", n, moved, n * drafts * state, STREAMING, verify, "fp32")
    moved = n * (2 * state + drafts * 6 * token)
    yield Case(f"lightning commit of {drafts}", n, moved, n * drafts * state, STREAMING, commit, "fp32")

    def prompt(device: torch.device) -> tuple[Call, Call | None]:
        i = _linear(s, device, 1, s.prefill, 0)
        return (lambda: lightning_attention_triton(i.q, i.k, i.v, i.state, i.decay, i.rows)), _simple_gla(i)

    # With the state: k^T v and q S; within a chunk: q k^T and its product with v.
    flops = s.prefill * token * (4 * s.head + 4 * _CHUNK)
    # Its products take fp32 in pieces the matrix units hold, so a sixth of their bf16 rate is aimed at.
    yield Case("lightning prefill", s.prefill, 14 * s.prefill * token, flops, 0.15, prompt, "bf16", "fla simple_gla", 3)


def _simple_gla(i: _Linear) -> Call | None:
    """flash-linear-attention's kernel for the same recurrence in bf16; None if that is not installed."""
    try:
        from fla.ops.simple_gla import chunk_simple_gla
    except ImportError:
        return None
    q, k, v = (x[None].bfloat16() for x in (i.q, i.k, i.v))
    decay = i.decay.expand(1, q.shape[1], -1).contiguous()
    return lambda: chunk_simple_gla(q, k, v, decay)


def mla(s: Sizes) -> Iterator[Case]:
    """Yield the rows of latent attention: decoding single tokens, verifying drafts, a prompt."""
    for context in s.contexts:
        for n in s.decode:
            yield _mla(s, (context - 1,) * n, 1, f"mla decode at {context}", STREAMING)
    yield _mla(s, (s.contexts[0],) * 8, s.drafts + 1, f"mla verify of {s.drafts + 1} at {s.contexts[0]}", STREAMING)
    yield _prefill(s)


def _mla(s: Sizes, starts: tuple[int, ...], count: int, name: str, expected: float) -> Case:
    width, tokens = s.rank + s.rope, len(starts) * count
    keys = sum(start + count for start in starts)
    pairs = sum(count * start + count * (count + 1) // 2 for start in starts)

    def build(device: torch.device) -> tuple[Call, None]:
        needs = -(-(starts[0] + count) // s.page)
        table = torch.randperm(len(starts) * needs, device=device).int().view(len(starts), needs)
        positions = (starts[0] + torch.arange(count, device=device)).repeat(len(starts))
        rows = make_rows(torch.arange(len(starts), device=device), positions, starts, (count,) * len(starts))
        pages = make_pages(rows, table, s.page)
        pool, q = random(device, table.numel(), s.page, width), random(device, tokens, s.heads, width)
        return (lambda: mla_attention_triton(q, pool, s.rank, width**-0.5, rows, pages)), None

    moved = 2 * (keys * width + tokens * s.heads * (width + s.rank))
    return Case(name, tokens, moved, 2 * pairs * s.heads * (width + s.rank), expected, build, launches=2)


def _prefill(s: Sizes) -> Case:
    """The row of a prompt in expanded form: latents are expanded to keys and values of all heads, then attended."""
    count, nope, v = s.prefill, s.head, s.head
    width, both = nope + s.rope, nope + v
    pairs = count * (count + 1) // 2

    def build(device: torch.device) -> tuple[Call, None]:
        pages = torch.randperm(-(-count // s.page), device=device)
        pool = random(device, len(pages), s.page, s.rank + s.rope)
        q, kv_b = random(device, count, s.heads, width), random(device, s.heads, both, s.rank)
        out = torch.empty(count, s.heads, v, dtype=q.dtype, device=device)
        row = LongRow(0, count, 0, pages)
        return (lambda: mla_prefill_triton(q, pool, kv_b, out, width**-0.5, row)), None

    # Latents gathered, then expanded and read back; queries in, values out.
    moved = 2 * count * (3 * (s.rank + s.rope) + s.heads * (2 * both + width + v))
    flops = 2 * s.heads * (pairs * (width + v) + count * s.rank * both)
    return Case("mla prefill", count, moved, flops, 0.4, build, launches=3)
