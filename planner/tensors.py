"""Lists every weight of a model: its shape, its kind, how ranks split it, and its bytes in each format.

All counts of weights are made from this list: parameters, checkpoint bytes, bytes of a rank, bytes a step reads.
`workers.model.released` says which of them a release quantizes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Literal, get_args

from planner.model import Model
from workers.model.files import BITS
from workers.model.quantization import Quantization
from workers.model.released import TENSORS, is_quantized

Kind = Literal[
    "embedding",
    "head",
    "linear attention",
    "MLA",
    "router",
    "routed experts",
    "shared experts",
    "dense MLP",
    "norms",
    "MTP",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
# How ranks split a tensor: by output rows, by input columns, by whole experts, or not at all (each rank holds it).
Split = Literal["rows", "columns", "experts", "none"]
_PLAIN = Quantization()


@dataclass(frozen=True, slots=True)
class CheckpointEntry:
    """One tensor of a checkpoint file. suffix: the end of its name, after the module. dtype: as safetensors names it.

    held: its dtype in a worker's memory; None if workers do not load it.
    """

    suffix: str
    dtype: str
    shape: tuple[int, ...]
    held: str | None

    @property
    def bytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * BITS[self.dtype] // 8

    @property
    def held_bytes(self) -> int:
        """Bytes in a worker's memory."""
        return prod(self.shape) * BITS[self.held] // 8 if self.held else 0


@dataclass(frozen=True, slots=True)
class Tensor:
    """A weight that occurs once for each of `layers` and each of `experts`.

    name: with `{layer}` and `{expert}` in their places. shape: [out, in] or [n]. wide: fp32 in every format. matmul:
    whether tokens are multiplied by it; an embedding's rows are only looked up, and norms cost almost nothing. routed:
    whether only the tokens that chose its expert use it.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    layers: tuple[int, ...] = (0,)
    experts: int = 1
    split: Split = "none"
    wide: bool = False
    matmul: bool = True
    routed: bool = False

    @property
    def copies(self) -> int:
        """How often the weight occurs in the model."""
        return len(self.layers) * self.experts

    @property
    def parameters(self) -> int:
        """Parameters of all copies."""
        return self.copies * prod(self.shape)

    def quantized(self, scheme: Quantization) -> bool:
        """Whether a release in that format quantizes it."""
        module = self.name.format(layer=0, expert=0).rpartition(".")[0]
        return len(self.shape) == 2 and is_quantized(scheme.method, module)

    def stored(self, scheme: Quantization) -> tuple[CheckpointEntry, ...]:
        """The checkpoint entries of one copy."""
        return self._entries(self.shape, scheme)

    def rank_copies(self, tp: int) -> int:
        """How many copies one of `tp` ranks holds, whole or in part."""
        return self.copies // tp if self.split == "experts" else self.copies

    def rank_shape(self, tp: int) -> tuple[int, ...]:
        """The shape of one copy's part on one of `tp` ranks."""
        if self.split == "rows":
            return (-(-self.shape[0] // tp), *self.shape[1:])
        if self.split == "columns":
            return (*self.shape[:-1], -(-self.shape[-1] // tp))
        return self.shape

    def rank_parameters(self, tp: int) -> int:
        """Parameters that one of `tp` ranks holds."""
        return self.rank_copies(tp) * prod(self.rank_shape(tp))

    def rank_bytes(self, scheme: Quantization, tp: int) -> int:
        """Bytes that one of `tp` ranks holds in memory."""
        return self.rank_copies(tp) * sum(entry.held_bytes for entry in self._entries(self.rank_shape(tp), scheme))

    def modules(self) -> Iterator[str]:
        """Yield the module's name of each copy: the weight's name up to its last dot."""
        module = self.name.rpartition(".")[0]
        for layer in self.layers:
            for expert in range(self.experts):
                yield module.format(layer=layer, expert=expert)

    def _entries(self, shape: tuple[int, ...], scheme: Quantization) -> tuple[CheckpointEntry, ...]:
        if self.wide:
            return (CheckpointEntry(self.name.rpartition(".")[2], "F32", shape, "F32"),)
        return _stored(shape, scheme if self.quantized(scheme) else _PLAIN)


@lru_cache(maxsize=4096)
def _stored(shape: tuple[int, ...], scheme: Quantization) -> tuple[CheckpointEntry, ...]:
    """A module's checkpoint entries. Each scale belongs to a block of rows and columns, or to a group of columns."""
    method = scheme.method
    if method == "none":
        return (CheckpointEntry("weight", "BF16", shape, "BF16"),)
    rows, columns = shape
    groups, per_channel = -(-columns // scheme.group), method == "channel fp8"
    shapes = {
        "weight": shape,
        "weight_scale_inv": (-(-rows // scheme.block[0]), -(-columns // scheme.block[1])),
        "weight_scale": (rows, 1 if per_channel else groups),
        "weight_packed": (rows, -(-columns // 8)),
        "qweight": (columns, -(-rows // 8)),
        "qzeros": (groups, -(-rows // 8)),
        "scales": (groups, rows),
    }
    found = [
        # Workers keep every scale of 8-bit floats in fp32.
        CheckpointEntry(suffix, dtype, shapes[suffix], "F32" if per_channel and suffix == "weight_scale" else dtype)
        for suffix, dtype in TENSORS[method].items()
    ]
    if method == "int4":
        found.append(CheckpointEntry("weight_shape", "I64", (2,), None))
    return tuple(found)


@lru_cache(maxsize=64)
def tensors(model: Model, mtp: bool) -> tuple[Tensor, ...]:
    """All weights of the model. mtp: whether to include those of its MTP layers, which have the kind "MTP"."""
    c = model.config
    hidden = c.hidden_size
    every = tuple(range(c.num_hidden_layers))
    moe = every[c.first_k_dense_replace :]
    found = [
        Tensor("model.word_embeddings.weight", "embedding", (c.vocab_size, hidden), split="rows", matmul=False),
        Tensor("lm_head.weight", "head", (c.vocab_size, hidden), split="rows"),
        _norm("model.norm.weight", "norms", hidden),
        *(_norm(f"{_LAYER}.{name}.weight", "norms", hidden, every) for name in _BLOCK_NORMS),
        *_linear_attention(model),
        *_mla(model, "MLA", model.latent_layers),
        *_mlp("mlp", "dense MLP", hidden, c.intermediate_size, every[: c.first_k_dense_replace]),
        *_moe(model, None, moe),
    ]
    if mtp:
        found += _mtp(model)
    return tuple(tensor for tensor in found if tensor.copies)


_LAYER = "model.layers.{layer}"
_BLOCK_NORMS = ("input_layernorm", "post_attention_layernorm")


def _norm(name: str, kind: Kind, width: int, layers: tuple[int, ...] = (0,), split: Split = "none") -> Tensor:
    return Tensor(name, kind, (width,), layers, split=split, matmul=False)


def _linear_attention(model: Model) -> list[Tensor]:
    c = model.config
    width, hidden, layers = c.num_attention_heads * c.head_dim, c.hidden_size, model.linear_layers
    prefix: str = f"{_LAYER}.attention"
    kind: Kind = "linear attention"
    return [
        Tensor(f"{prefix}.query_key_value.weight", kind, (3 * width, hidden), layers, split="rows"),
        Tensor(f"{prefix}.g_proj.weight", kind, (width, hidden), layers, split="rows"),
        Tensor(f"{prefix}.dense.weight", kind, (hidden, width), layers, split="columns"),
        _norm(f"{prefix}.query_layernorm.weight", kind, c.head_dim, layers),
        _norm(f"{prefix}.key_layernorm.weight", kind, c.head_dim, layers),
        _norm(f"{prefix}.g_norm.weight", kind, width, layers, "rows"),
    ]


def _mla(model: Model, kind: Kind, layers: tuple[int, ...]) -> list[Tensor]:
    """The weights of MLA. All ranks hold the down-projections, which feed every head; others are split by head."""
    c = model.config
    heads, hidden = c.num_attention_heads, c.hidden_size
    query = heads * (c.qk_nope_head_dim + c.qk_rope_head_dim)
    prefix: str = f"{_LAYER}.attention"
    found = [
        Tensor(f"{prefix}.kv_a_proj_with_mqa.weight", kind, (c.latent_width, hidden), layers),
        _norm(f"{prefix}.kv_a_layernorm.weight", kind, c.kv_lora_rank, layers),
        Tensor(
            f"{prefix}.kv_b_proj.weight",
            kind,
            (heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank),
            layers,
            split="rows",
        ),
        Tensor(f"{prefix}.dense.weight", kind, (hidden, heads * c.v_head_dim), layers, split="columns"),
    ]
    if c.q_lora_rank is None:
        return [Tensor(f"{prefix}.q_proj.weight", kind, (query, hidden), layers, split="rows"), *found]
    return [
        Tensor(f"{prefix}.q_a_proj.weight", kind, (c.q_lora_rank, hidden), layers),
        _norm(f"{prefix}.q_a_layernorm.weight", kind, c.q_lora_rank, layers),
        Tensor(f"{prefix}.q_b_proj.weight", kind, (query, c.q_lora_rank), layers, split="rows"),
        *found,
    ]


def _mlp(
    path: str,
    kind: Kind,
    hidden: int,
    width: int,
    layers: tuple[int, ...],
    experts: int = 1,
) -> list[Tensor]:
    """The weights of a gated MLP. Each routed expert (`{expert}` in the path) is whole on one rank."""
    prefix, routed = f"{_LAYER}.{path}", "{expert}" in path
    inner: Split = "experts" if routed else "rows"
    outer: Split = "experts" if routed else "columns"
    return [
        *(
            Tensor(f"{prefix}.{name}.weight", kind, (width, hidden), layers, experts, inner, routed=routed)
            for name in ("gate_proj", "up_proj")
        ),
        Tensor(f"{prefix}.down_proj.weight", kind, (hidden, width), layers, experts, outer, routed=routed),
    ]


def _moe(model: Model, kind: Kind | None, layers: tuple[int, ...]) -> list[Tensor]:
    """The weights of router, routed and shared experts. kind: replaces each one's own kind; None to keep it."""
    c = model.config
    hidden, width = c.hidden_size, c.moe_intermediate_size
    shared = layers if c.num_shared_experts else ()
    return [
        Tensor(f"{_LAYER}.mlp.gate.weight", kind or "router", (c.num_experts, hidden), layers),
        Tensor(f"{_LAYER}.mlp.gate.expert_bias", kind or "router", (c.num_experts,), layers, wide=True, matmul=False),
        *_mlp(
            "mlp.experts.{expert}",
            kind or "routed experts",
            hidden,
            width,
            layers,
            c.num_experts,
        ),
        *_mlp("mlp.shared_experts", kind or "shared experts", hidden, width * c.num_shared_experts, shared),
    ]


def _mtp(model: Model) -> list[Tensor]:
    """The weights of the MTP layers, which follow the last layer: a projection of [embedding, hidden] and an MLA block
    with experts.
    """
    c = model.config
    hidden, first = c.hidden_size, c.num_hidden_layers
    layers = tuple(range(first, first + model.mtp_layers))
    norms = ("enorm", "hnorm", "final_layernorm", *_BLOCK_NORMS)
    return [
        Tensor(f"{_LAYER}.eh_proj.weight", "MTP", (hidden, 2 * hidden), layers),
        *(_norm(f"{_LAYER}.{name}.weight", "MTP", hidden, layers) for name in norms),
        *_mla(model, "MTP", layers),
        *_moe(model, "MTP", layers),
    ]
