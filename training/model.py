"""The trainable twin of the served model: the same computation over whole sequences, in plain torch with gradients.

All sequences start at position 0 and are padded at their end; padding has no effect, because attention is causal.
Linear attention runs in chunks. Each expert runs over the tokens that chose it, which are sorted by expert.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Shape:
    """The model's sizes, named as in config.json."""

    vocab_size: int = 1280
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    head_dim: int = 32
    layer_group_size: int = 2
    group_norm_size: int = 4
    q_lora_rank: int | None = None
    kv_lora_rank: int = 64
    qk_nope_head_dim: int = 32
    qk_rope_head_dim: int = 16
    v_head_dim: int = 32
    num_experts: int = 8
    num_experts_per_tok: int = 2
    n_group: int = 4
    topk_group: int = 2
    moe_intermediate_size: int = 64
    routed_scaling_factor: float = 2.5
    partial_rotary_factor: float = 0.5
    rope_theta: float = 6000000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 16384

    def is_mla(self, layer: int) -> bool:
        """Whether a layer is MLA: the last of each group, and a trailing incomplete group."""
        size = self.layer_group_size
        return (layer + 1) % size == 0 or layer >= self.num_hidden_layers // size * size

    def config(self) -> dict[str, Any]:
        """The sizes as a dict."""
        return asdict(self)


class Norm(nn.Module):
    """RMSNorm over the last dimension."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def apply(module: nn.Module, x: Tensor) -> Tensor:
    """Call a module, with a typed result."""
    out: Tensor = module(x)
    return out


def rope_tables(length: int, dims: int, theta: float) -> tuple[Tensor, Tensor]:
    """Rotary tables of positions 0 to length - 1: cos and sin, each [length, dims / 2]."""
    frequency = theta ** (-torch.arange(0, dims, 2).double() / dims)
    angle = torch.arange(length).double()[:, None] * frequency
    return angle.cos().float(), angle.sin().float()


def rope_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first dims of x [B, T, H, D], as many as cos and sin have together; pair i is dims i and i + half."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)


def rope_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate all dims of x [B, T, H, D]; dims 2i and 2i + 1 are a pair.

    The result's dims are in another order, the same for queries and keys, which leaves their products unchanged.
    """
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Linear(nn.Module):
    """Lightning attention with a decaying state, computed in chunks. x [B, T, hidden] to [B, T, hidden]."""

    chunk = 32

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.heads, self.dim, self.groups = shape.num_attention_heads, shape.head_dim, shape.group_norm_size
        self.eps = shape.rms_norm_eps
        width = self.heads * self.dim
        self.query_key_value = nn.Linear(shape.hidden_size, 3 * width, bias=False)
        self.query_layernorm = Norm(self.dim, self.eps)
        self.key_layernorm = Norm(self.dim, self.eps)
        self.g_proj = nn.Linear(shape.hidden_size, width, bias=False)
        self.g_norm = nn.Parameter(torch.ones(width))
        self.dense = nn.Linear(width, shape.hidden_size, bias=False)
        base = 2.0 ** (-8.0 * torch.arange(1, self.heads + 1).double() / self.heads)
        slope = base * (1 - layer / (shape.num_hidden_layers - 1) + 1e-5)
        step = torch.arange(self.chunk).double()
        apart = step[:, None] - step[None, :]
        inside = torch.where(apart >= 0, torch.exp(-slope[:, None, None] * apart.clamp(min=0)), 0.0)
        self.slope = slope
        self.inside = (inside * self.dim**-0.5).float()
        self.entering = (torch.exp(-slope[:, None] * (step + 1)) * self.dim**-0.5).float()[..., None]
        self.leaving = torch.exp(-slope[:, None] * (self.chunk - 1 - step)).float()[..., None]

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads, dim, chunk = self.heads, self.dim, self.chunk
        q, k, v = self.query_key_value(x).view(batch, length, 3, heads, dim).unbind(2)
        q = rope_half(self.query_layernorm(q), cos, sin)
        k = rope_half(self.key_layernorm(k), cos, sin)
        chunks = -(-length // chunk)
        fill = chunks * chunk - length

        def cut(t: Tensor) -> Tensor:
            t = F.pad(t, (0, 0, 0, 0, 0, fill)) if fill else t
            return t.view(batch, chunks, chunk, heads, dim).permute(0, 3, 1, 2, 4).contiguous()

        q, k, v = cut(q), cut(k), cut(v)
        out = (q @ k.transpose(-1, -2) * self.inside[:, None]) @ v
        if chunks > 1:
            added = (k * self.leaving[:, None]).transpose(-1, -2) @ v
            index = torch.arange(chunks)
            apart = (index[:, None] - index[None, :] - 1).double()
            carry = torch.exp(-self.slope[:, None, None] * chunk * apart.clamp(min=0)) * (apart >= 0)
            state = carry.float() @ added.flatten(3)
            out = out + (q * self.entering[:, None]) @ state.view(batch, heads, chunks, dim, dim)
        out = out.permute(0, 2, 3, 1, 4).reshape(batch, chunks * chunk, self.groups, -1)[:, :length]
        out = F.rms_norm(out, (out.shape[-1],), None, self.eps).flatten(2) * self.g_norm
        return apply(self.dense, out * torch.sigmoid(self.g_proj(x)))


class Latent(nn.Module):
    """MLA in its unabsorbed form: keys and values are expanded from latents. x [B, T, hidden] to [B, T, hidden]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.num_attention_heads
        self.nope, self.rope, self.value = shape.qk_nope_head_dim, shape.qk_rope_head_dim, shape.v_head_dim
        self.rank = shape.kv_lora_rank
        hidden = shape.hidden_size
        width = self.heads * (self.nope + self.rope)
        if shape.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, width, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, shape.q_lora_rank, bias=False)
            self.q_a_layernorm = Norm(shape.q_lora_rank, shape.rms_norm_eps)
            self.q_b_proj = nn.Linear(shape.q_lora_rank, width, bias=False)
        self.low_rank = shape.q_lora_rank is not None
        self.kv_a_proj_with_mqa = nn.Linear(hidden, self.rank + self.rope, bias=False)
        self.kv_a_layernorm = Norm(self.rank, shape.rms_norm_eps)
        self.kv_b_proj = nn.Linear(self.rank, self.heads * (self.nope + self.value), bias=False)
        self.dense = nn.Linear(self.heads * self.value, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))) if self.low_rank else self.q_proj(x)
        q = q.view(batch, length, self.heads, -1)
        q = torch.cat((q[..., : self.nope], rope_interleaved(q[..., self.nope :], cos, sin)), -1)
        latent, turned = self.kv_a_proj_with_mqa(x).split((self.rank, self.rope), -1)
        turned = rope_interleaved(turned[:, :, None], cos, sin).expand(-1, -1, self.heads, -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(batch, length, self.heads, -1)
        k = torch.cat((kv[..., : self.nope], turned), -1)
        # Equal widths let torch use its fused kernel.
        v = F.pad(kv[..., self.nope :], (0, self.nope + self.rope - self.value))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return apply(self.dense, out.transpose(1, 2)[..., : self.value].flatten(2))


class Mlp(nn.Module):
    """A gated MLP with SwiGLU."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(hidden, 2 * width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return apply(self.down_proj, F.silu(gate) * up)


class _Gather(torch.autograd.Function):
    """rows[source], with a backward pass that gathers too: it adds up the gradients at places[i] for each row i."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, source: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return rows.index_select(0, source)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        grad = grads[0].index_select(0, places.flatten())
        return grad.view(*places.shape, -1).sum(1), None, None


def _gather(rows: Tensor, source: Tensor, places: Tensor) -> Tensor:
    out: Tensor = _Gather.apply(rows, source, places)  # type: ignore[no-untyped-call]
    return out


class Experts(nn.Module):
    """Routed experts and a shared one. A grouped sigmoid router with a selection bias chooses the routed ones.

    load [E]: how many tokens chose each expert since the last `rebalance`.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        hidden, width, count = shape.hidden_size, shape.moe_intermediate_size, shape.num_experts
        self.gate = nn.Linear(hidden, count, bias=False)
        self.register_buffer("expert_bias", torch.zeros(count))
        self.expert_bias: Tensor
        self.gate_up = nn.Parameter(torch.zeros(count, 2 * width, hidden))
        self.down = nn.Parameter(torch.zeros(count, hidden, width))
        self.shared_experts = Mlp(hidden, width)
        self.load = torch.zeros(count)

    def choose(self, scores: Tensor) -> Tensor:
        """The chosen experts [N, k] for sigmoid scores [N, E]."""
        c = self.shape
        biased = scores + self.expert_bias
        grouped = biased.view(-1, c.n_group, c.num_experts // c.n_group)
        best = grouped.topk(2, -1).values.sum(-1).topk(c.topk_group, -1).indices
        kept = torch.zeros(grouped.shape[:2], dtype=torch.bool).scatter_(1, best, True)
        masked = grouped.masked_fill(~kept[..., None], float("-inf")).flatten(1)
        return masked.topk(c.num_experts_per_tok, -1).indices

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        scores = torch.sigmoid(self.gate(flat))
        with torch.no_grad():
            chosen = self.choose(scores)
        weights = scores.gather(1, chosen)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * self.shape.routed_scaling_factor
        count = chosen.shape[1]
        order = chosen.flatten().argsort(stable=True)
        places = torch.empty_like(order)
        places[order] = torch.arange(order.numel())
        places = places.view(-1, count)
        sizes = torch.bincount(chosen.flatten(), minlength=self.shape.num_experts)
        self.load += sizes
        routed = _gather(flat, order // count, places)
        parts = torch.split(routed, sizes.tolist())
        outs = []
        for part, gate_up, down in zip(parts, self.gate_up.unbind(0), self.down.unbind(0), strict=True):
            gate, up = (part @ gate_up.t()).chunk(2, -1)
            outs.append((F.silu(gate) * up) @ down.t())
        back = _gather(torch.cat(outs), places.flatten(), order[:, None]).view(-1, count, x.shape[-1])
        mixed = torch.einsum("nkd,nk->nd", back, weights)
        return (mixed + apply(self.shared_experts, flat)).view_as(x)

    @torch.no_grad()
    def rebalance(self, rate: float) -> None:
        """Raise by `rate` the bias of experts with less than their share of `load`, lower the others', and clear it."""
        self.expert_bias += rate * torch.sign(self.load.mean() - self.load)
        self.load.zero_()


class Block(nn.Module):
    """One layer: linear attention or MLA, then a dense MLP in layer 0 or experts in the others."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        hidden, eps = shape.hidden_size, shape.rms_norm_eps
        self.mla = shape.is_mla(layer) if layer < shape.num_hidden_layers else True
        self.input_layernorm = Norm(hidden, eps)
        self.attention: nn.Module = Latent(shape) if self.mla else Linear(shape, layer)
        self.post_attention_layernorm = Norm(hidden, eps)
        self.mlp: nn.Module = Mlp(hidden, shape.intermediate_size) if layer == 0 else Experts(shape)

    def forward(self, x: Tensor, ropes: "Ropes") -> Tensor:
        cos, sin = ropes.mla if self.mla else ropes.linear
        x = x + self.attention(self.input_layernorm(x), cos, sin)
        return x + apply(self.mlp, self.post_attention_layernorm(x))


@dataclass(frozen=True, slots=True)
class Ropes:
    """The rotary tables (cos, sin) of both kinds of attention, for positions 0 to T - 1."""

    linear: tuple[Tensor, Tensor]
    mla: tuple[Tensor, Tensor]


class Nextn(nn.Module):
    """The MTP layer: it predicts token t + 2 from the hidden state at t and token t + 1."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        hidden, eps = shape.hidden_size, shape.rms_norm_eps
        self.enorm, self.hnorm = Norm(hidden, eps), Norm(hidden, eps)
        self.eh_proj = nn.Linear(2 * hidden, hidden, bias=False)
        self.block = Block(shape, shape.num_hidden_layers)
        self.final_layernorm = Norm(hidden, eps)

    def forward(self, embedded: Tensor, hidden: Tensor, ropes: Ropes) -> Tensor:
        x = self.eh_proj(torch.cat((self.enorm(embedded), self.hnorm(hidden)), -1))
        return apply(self.final_layernorm, self.block(x, ropes))


class Nano(nn.Module):
    """The whole model. `forward` gives hidden states, from which `lm_head` makes logits."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.word_embeddings = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Block(shape, i) for i in range(shape.num_hidden_layers))
        self.norm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        self.mtp = Nextn(shape)

    def ropes(self, length: int) -> Ropes:
        """The rotary tables for positions 0 to length - 1."""
        c = self.shape
        linear = rope_tables(length, int(c.head_dim * c.partial_rotary_factor), c.rope_theta)
        return Ropes(linear, rope_tables(length, c.qk_rope_head_dim, c.rope_theta))

    def forward(self, ids: Tensor) -> Tensor:
        """Compute hidden states [B, T, hidden] after the final norm from ids [B, T]."""
        ropes = self.ropes(ids.shape[1])
        x = apply(self.word_embeddings, ids)
        for layer in self.layers:
            x = layer(x, ropes)
        return apply(self.norm, x)

    def ahead(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """Compute the MTP layer's hidden states [B, T - 1, hidden]; row t predicts token t + 2."""
        ropes = self.ropes(ids.shape[1] - 1)
        ahead: Tensor = self.mtp(self.word_embeddings(ids[:, 1:]), hidden[:, :-1], ropes)
        return ahead

    def experts(self) -> list[Experts]:
        """The experts of all layers, the MTP layer's last."""
        return [m for m in self.modules() if isinstance(m, Experts)]
