"""Where training starts: weights that already lean to induction, the circuit behind copying.

Random weights find induction only after more tokens than a small machine reads in an hour, so its parts are laid out:
a constant dimension lets layer 0's first linear head ignore content and weigh by distance alone, peaking at the token
before; it writes that token's projection where embeddings start empty. One head of each MLA layer then looks for
places whose earlier token is the present one, and passes on the token standing there, to dimensions that the head
reads as a token. All of it is free to change.
"""

import torch
from torch import Tensor, nn

from training.model import Latent, Linear, Nano, rope_tables

_CONSTANT = 4.0


@torch.no_grad()
def initialise(model: Nano, seed: int) -> None:
    """Normal weights scaled by fan-in, small output weights, and the induction circuit."""
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
    """Orthonormal rows [count, hidden] within what embeddings use: not the constant, nor the last 2 * count."""
    rows = torch.zeros(count, hidden)
    basis, _ = torch.linalg.qr(torch.randn(hidden - 2 * count - 1, count))
    rows[:, 1 : hidden - 2 * count] = basis.t()
    return rows


def _token_before(attention: Linear, seen: Tensor) -> None:
    """Head 0: scores by distance alone, fitted to peak at 1; values `seen`; written to the last dimensions."""
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
    """Head 0: queries are the present token, keys the token before, values the token itself."""
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
    """Heads 1 and 2 from what head 0 is, even after training.

    Head 1: queries and keys are both the token, values what stood before it: at a word's second mention, what
    preceded its first. Head 2: as head 0, with a query that knows the token before too, so that two must match.
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
