"""Counts the bytes that one step reads, writes and exchanges on one rank, and its FLOPs, without times."""

from dataclasses import dataclass
from functools import lru_cache

from planner.model import Model
from planner.tensors import Tensor, tensors

# Tokens of a chunk of linear attention: within a chunk it multiplies tokens with tokens, between chunks it uses the
# state.
CHUNK = 64


@dataclass(frozen=True, slots=True)
class Step:
    """A step of `sequences` equal sequences, each with `tokens` new tokens after `past` earlier ones.

    sampled: the number of tokens whose logits it computes.
    """

    sequences: int
    tokens: int
    past: int
    sampled: int

    @property
    def new(self) -> int:
        """The number of tokens that the step computes."""
        return self.sequences * self.tokens


@dataclass(frozen=True, slots=True)
class Work:
    """One rank's share of a step.

    weights, states, latents: bytes read and written in device memory. bf16_flops, fp8_flops: FLOPs on the units of that
    precision. reduces: all-reduces, of `reduce_bytes` each; gather_bytes: logits that each rank gathers at the end.
    """

    weights: float
    states: float
    latents: float
    bf16_flops: float
    fp8_flops: float
    reduces: int
    reduce_bytes: float
    gather_bytes: float

    @property
    def bytes(self) -> float:
        """All bytes read and written in device memory."""
        return self.weights + self.states + self.latents


def touched_share(model: Model, tokens: int) -> float:
    """The share of routed experts that `tokens` tokens choose if each chooses k of E evenly: 1 - (1 - k/E)^tokens."""
    return 1 - (1 - model.config.num_experts_per_tok / model.config.num_experts) ** tokens


def weights_read(model: Model, step: Step, tp: int) -> float:
    """Bytes of weights that one rank reads.

    It reads all but the embedding's rows that no token needs, the routed experts that no token chose, and, if nothing
    is sampled, the head. Tokens are assumed to choose experts evenly across ranks.
    """
    split = _by_use(model, tp)
    rows = step.new * model.config.hidden_size * 2 / tp
    head = split.head_bytes if step.sampled else 0
    return split.always_bytes + split.routed_bytes * touched_share(model, step.new) + rows + head


def states_moved(model: Model, step: Step, tp: int) -> float:
    """Bytes of linear state that one rank moves: it reads and writes its heads' state of every sequence once."""
    return 2.0 * step.sequences * model.state_bytes(tp)


def latents_moved(model: Model, step: Step) -> float:
    """Bytes of latents that each rank reads and writes. Each rank reads all of them, because every head uses them."""
    return float(step.sequences * (step.past + step.tokens) * model.latent_bytes())


def matmul_flops(model: Model, step: Step, tp: int) -> tuple[float, float]:
    """(bf16, fp8) FLOPs of one rank's products with weights: 2 for each parameter and each token that uses it.

    Products with FP8 weights in blocks count as fp8, because their activations are quantized; all others as bf16.
    """
    split = _by_use(model, tp)
    share = model.config.num_experts_per_tok / model.config.num_experts
    bf16 = split.bf16_params + split.routed_bf16_params * share
    fp8 = split.fp8_params + split.routed_fp8_params * share
    return 2.0 * (step.new * bf16 + step.sampled * split.head_params), 2.0 * step.new * fp8


def attention_flops(model: Model, step: Step, tp: int) -> float:
    """FLOPs of one rank's heads in both kinds of attention, in bf16.

    Linear attention: q S and k^T v take 4 d^2 per token and head, and 4 d per pair of tokens within a chunk. MLA, with
    P causal pairs of query and key, takes the smaller of: absorbed, in the latent space, 2 P (2 r + rope); expanded,
    2 P (nope + rope + v), and 2 r (nope + v) for each earlier token to expand its latents to keys and values.
    """
    c = model.config
    heads = c.num_attention_heads / tp
    linear = 4 * c.head_dim * (c.head_dim + min(step.tokens, CHUNK)) * step.new
    pairs = step.sequences * (step.tokens * step.past + step.tokens * (step.tokens + 1) / 2)
    absorbed = 2 * pairs * (2 * c.kv_lora_rank + c.qk_rope_head_dim)
    expansion = 2 * c.kv_lora_rank * (c.qk_nope_head_dim + c.v_head_dim) * step.sequences * step.past
    expanded = 2 * pairs * (c.qk_nope_head_dim + c.qk_rope_head_dim + c.v_head_dim) + expansion
    return heads * (c.linear_layers * linear + c.mla_layers * min(absorbed, expanded))


def work(model: Model, step: Step, tp: int) -> Work:
    """One rank's share of a step. It all-reduces, in bf16, twice per layer (attention, MLP) and for the embedding."""
    bf16, fp8 = matmul_flops(model, step, tp)
    return Work(
        weights=weights_read(model, step, tp),
        states=states_moved(model, step, tp),
        latents=latents_moved(model, step),
        bf16_flops=bf16 + attention_flops(model, step, tp),
        fp8_flops=fp8,
        reduces=2 * model.config.num_hidden_layers + 1,
        reduce_bytes=step.new * model.config.hidden_size * 2,
        gather_bytes=step.sampled * model.config.vocab_size * 4,
    )


@dataclass(frozen=True, slots=True)
class _Use:
    """The bytes and parameters of one rank's weights, by how a step uses them."""

    always_bytes: int
    routed_bytes: int
    head_bytes: int
    head_params: int
    bf16_params: int
    fp8_params: int
    routed_bf16_params: int
    routed_fp8_params: int


@lru_cache(maxsize=256)
def _by_use(model: Model, tp: int) -> _Use:
    scheme = model.scheme
    every = [tensor for tensor in tensors(model, mtp=False) if tensor.kind != "embedding"]
    head = [tensor for tensor in every if tensor.kind == "head"]
    routed = [tensor for tensor in every if tensor.routed]
    always = [tensor for tensor in every if tensor.kind != "head" and not tensor.routed]

    def size(some: list[Tensor]) -> int:
        return sum(tensor.rank_bytes(scheme, tp) for tensor in some)

    def params(some: list[Tensor], in_fp8: bool) -> int:
        return sum(
            tensor.rank_parameters(tp)
            for tensor in some
            if tensor.matmul and (scheme.method == "fp8" and tensor.quantized(scheme)) == in_fp8
        )

    return _Use(
        always_bytes=size(always),
        routed_bytes=size(routed),
        head_bytes=size(head),
        head_params=params(head, False),
        bf16_params=params(always, False),
        fp8_params=params(always, True),
        routed_bf16_params=params(routed, False),
        routed_fp8_params=params(routed, True),
    )
