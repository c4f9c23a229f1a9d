"""The memory that a rank needs on its GPU beside weights, states and latents. Without torch.

Nothing here was measured on a GPU: a test compares activations with the model's code, and the rest is assumed.
"""

from dataclasses import astuple, dataclass

from workers.config import WorkerConfig
from workers.model.config import LingConfig
from workers.sizes import max_model_len, staging_of

GIB = 1 << 30
# Graphs of the decode step at the captured batch sizes, and their private pool.
GRAPH_BYTES = GIB
# Memory that is taken after the weights are loaded: kernels, library workspaces, the channels of links.
LATER_BYTES = GIB
# The share of the card's memory that is lost between the allocator's blocks.
MARGIN_SHARE = 0.03
# Elements of keys and values that exist at once (`kernels.mla.prefill`).
_EXPANDED = 1 << 26
# Partial sums of products and attention that are split over programs, whatever the step's size.
_SPLIT_BYTES = GIB // 4


@dataclass(frozen=True, slots=True)
class Reserve:
    """Bytes of a rank's GPU that latent pages must leave free, by purpose."""

    activations: int
    logits: int
    graphs: int
    later: int
    staging: int
    margin: int

    @property
    def total(self) -> int:
        """The sum of all purposes."""
        return sum(astuple(self))


def reserve(config: WorkerConfig, model: LingConfig, card: int) -> Reserve:
    """The reserve of one rank of a worker. card: bytes of its GPU."""
    context = max_model_len(config, model)
    return Reserve(
        activations=activation_bytes(model, config.tp, config.max_step_tokens, context),
        logits=config.slots * logit_bytes(model),
        graphs=GRAPH_BYTES if config.cuda_graphs == "auto" else 0,
        later=LATER_BYTES,
        # Snapshots that arrive and snapshots that leave.
        staging=2 * staging_of(config, model).budget,
        margin=int(card * MARGIN_SHARE),
    )


def pages_beside(free: int, states: int, page: int, kept: Reserve) -> int:
    """Latent pages of `page` bytes that fit into `free` bytes, weights loaded, beside `states` bytes of states.

    MemoryError, which says what takes the memory, if none fits.
    """
    pages = (free - states - kept.total) // page
    if pages <= 0:
        parts = (kept.activations, kept.logits, kept.graphs, kept.later, kept.staging, kept.margin)
        names = ("activations", "logits", "graphs", "kernels and links", "snapshots on their way", "the allocator")
        needs = ", ".join(f"{size / 1e9:.2f} for {name}" for name, size in zip(names, parts, strict=True))
        raise MemoryError(
            f"{free / 1e9:.2f} GB are free once the weights are loaded, and no page of latents fits: "
            f"{states / 1e9:.2f} GB are for states, {needs}; lower slots, max_step_tokens or max_model_len, or raise tp"
        )
    return pages


def logit_bytes(model: LingConfig) -> int:
    """Bytes of one sequence's fp32 logits over the whole vocabulary, twice: gathered, and edited by the sampler."""
    return 2 * 4 * model.vocab_size


def activation_bytes(c: LingConfig, tp: int, tokens: int, context: int) -> int:
    """The most a step of so many tokens holds at once on one rank, in bf16 but for fp32 where the maths asks for it.

    Always there: the residual stream, its normed copy and the block's output, 3 T H, and sums that are split over
    programs. On top the widest of
    - linear attention: q, k, v and gate of this rank's heads in bf16, q, k, v and output once more in fp32;
    - MLA: queries and output of this rank's heads, what prompts carry from one run of keys to the next in fp32, and one
      run of keys and values expanded for all heads;
    - experts: if every token chose this rank, T min(k, E/tp) rows of input, gate, up and output, then the shared
      expert's; the output rows are summed in fp32.
    """
    heads = c.num_attention_heads / tp
    residual = 3 * tokens * c.hidden_size * 2
    linear = tokens * heads * c.head_dim * (4 * 2 + 4 * 4)
    query = c.qk_nope_head_dim + c.qk_rope_head_dim + c.v_head_dim
    run = min(context * heads * (c.qk_nope_head_dim + c.v_head_dim), _EXPANDED) + context * c.latent_width
    mla = heads * tokens * (2 * query + 4 * (c.v_head_dim + 1)) + 2 * run
    rows = tokens * min(c.num_experts_per_tok, c.num_experts // tp)
    routed = rows * (c.hidden_size * (2 + 4) + 3 * c.moe_intermediate_size * 2)
    shared = tokens * 3 * c.moe_intermediate_size * c.num_shared_experts // tp * 2
    dense = tokens * 3 * c.intermediate_size // tp * 2
    return _SPLIT_BYTES + int(residual + max(linear, mla, routed + shared, dense))
