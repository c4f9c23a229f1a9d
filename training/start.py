"""The weights with which training starts: random ones with an induction circuit, which copies earlier tokens.

Random weights learn induction only after more tokens than a small machine processes in an hour, so the circuit is laid
out in advance. Embeddings have a constant dimension, by which head 0 of layer 0's linear attention weighs tokens by
distance alone, with its peak at the previous token. That head writes a projection of the previous token to dimensions
in which embeddings are zero. Head 0 of each MLA layer looks for positions whose previous token is the present token,
and copies the token at that position to dimensions that the output head reads as a token. Training may change all of
it.
"""

import torch
from torch import Tensor, nn

from training.model import Latent, Linear, Nano, rope_tables

_CONSTANT = 4.0


@torch.no_grad()
def initialise(model: Nano, seed: int) -> None:
    """Set a model's weights: normal ones scaled by fan-in, small output weights, and the induction circuit."""
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        if p.ndim < 2:
            continue
        nn.init.normal_(p, std=p.shape[-1] ** -0.5)
        if name.endswith(("dense.weight", "down_proj.weight", "down")):
            p.mul_(0.3)
    hidden = model.shape.hidden_size
    table = model.word_embeddings.weight
    table.normal_()
    dim = model.shape.head_dim
    table[:, hidden - 2 * dim :] = 0
    table[:, 0] = 0
    seen, passed = _directions(dim, hidden), _directions(dim, hidden)
    model.lm_head.weight.normal_(std=0.02)
    model.lm_head.weight[:, hidden - 2 * dim : hidden - dim] = table @ passed.t() * dim**-0.5
    table[:, 0] = _CONSTANT
    first = model.layers[0].attention
    assert isinstance(first, Linear)
    _token_before(first, seen)
    for layer in model.layers:
        if isinstance(layer.attention, Latent):
            _match_and_copy(layer.attention, seen, passed)


def _directions(count: int, hidden: int) -> Tensor:
    """Orthonormal rows [count, hidden] in the dimensions of embeddings: without the constant and the last 2 * count."""
    rows = torch.zeros(count, hidden)
    basis, _ = torch.linalg.qr(torch.randn(hidden - 2 * count - 1, count))
    rows[:, 1 : hidden - 2 * count] = basis.t()
    return rows


def _token_before(attention: Linear, seen: Tensor) -> None:
    """Make head 0 copy the previous token: scores depend on distance only and peak at 1.

    seen [dim, hidden]: the projection that gives values, which are written to the last dim dimensions.
    """
    dim, heads = attention.dim, attention.heads
    distance = torch.arange(60)
    cos, sin = (t.double() for t in rope_tables(60, dim // 2, 6e6))
    used = 4
    columns = [torch.ones(60, dtype=torch.double)] + [t[:, f] for f in range(used) for t in (cos, sin)]
    fit = torch.stack(columns, 1) * torch.exp(-attention.slope[0] * distance)[:, None]
    goal = (distance == 1).double()
    ridge = 3e-3 * torch.eye(fit.shape[1], dtype=torch.double)
    weight = torch.linalg.solve(fit.t() @ fit + ridge, fit.t() @ goal)
    query, key = torch.zeros(dim), torch.zeros(dim)
    query[dim // 2] = key[dim // 2] = weight[0].abs().sqrt()
    key[dim // 2] *= weight[0].sign()
    for f in range(used):
        a, b = weight[1 + 2 * f], weight[2 + 2 * f]
        size, angle = torch.hypot(a, b).sqrt(), torch.atan2(b, a)
        query[f] = size
        key[f], key[f + dim // 4] = size * angle.cos(), size * angle.sin()
    rows = attention.query_key_value.weight
    width = heads * dim
    for start, content in ((0, query), (width, key)):
        rows[start : start + dim] = 0.01 * torch.randn(dim, rows.shape[1])
        rows[start : start + dim, 0] = content
    rows[2 * width : 2 * width + dim] = seen
    attention.dense.weight[:, :dim] = 0
    attention.dense.weight[-2 * dim :] = 0
    attention.dense.weight[-dim:, :dim] = 2 * torch.eye(dim)


def _match_and_copy(attention: Latent, seen: Tensor, passed: Tensor) -> None:
    """Make head 0 match and copy: queries are the present token, keys the previous token, values the token itself.

    seen, passed [dim, hidden]: the projections of a token as query and key, and as value.
    """
    dim = len(seen)
    nope, value = attention.nope, attention.value
    latent = attention.kv_a_proj_with_mqa.weight
    latent[:dim] = 0
    latent[:dim, -dim:] = torch.eye(dim)
    latent[dim : 2 * dim] = passed
    attention.q_proj.weight[: nope + attention.rope] = 0
    attention.q_proj.weight[:nope] = 2 * seen
    attention.kv_b_proj.weight[: nope + value] = 0
    attention.kv_b_proj.weight[:nope, :dim] = torch.eye(dim)
    attention.kv_b_proj.weight[nope : nope + value, dim:] = torch.eye(dim)
    attention.dense.weight[-2 * dim : -dim] = 0
    attention.dense.weight[:, :value] = 0
    attention.dense.weight[-2 * dim : -dim, :value] = torch.eye(dim)
    more_heads(attention)


@torch.no_grad()
def more_heads(attention: Latent) -> None:
    """Set heads 1 and 2 by head 0's weights. It can also be called after training.

    Head 1: queries and keys are the token, values the previous token, so at a token's second occurrence it gives what
    preceded the first. Head 2: as head 0, but its query also has the previous token, so that two tokens must match.
    """
    nope, value = attention.nope, attention.value
    query, key = attention.q_proj.weight, attention.kv_b_proj.weight
    latent, out = attention.kv_a_proj_with_mqa.weight, attention.dense.weight
    half = attention.rank // 2
    q, k = nope + attention.rope, nope + value
    query[q : 2 * q] *= 0.3
    query[q : q + nope] = 2 * latent[half : 2 * half]
    key[k : 2 * k] = 0
    key[k : k + nope, half:] = torch.eye(half)
    key[k + nope : 2 * k, :half] = torch.eye(half)
    away, _ = torch.linalg.qr(torch.randn(out.shape[0], value))
    out[:, value : 2 * value] = 0.4 * away
    query[2 * q : 3 * q] = query[:q]
    query[2 * q : 2 * q + nope] += 1.4 * key[:nope] @ latent[: attention.rank]
    key[2 * k : 3 * k] = key[:k]
    out[:, 2 * value : 3 * value] = 0.3 * out[:, :value]
