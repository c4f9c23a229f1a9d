"""The largest gain of speculation: the time of a step that verifies drafts and of the MTP passes that make them."""

from dataclasses import dataclass, replace
from functools import lru_cache

from planner.cards import Card
from planner.model import Model
from planner.speed import decode_time, time_of
from planner.tensors import Tensor, tensors
from planner.work import Step, Work, touched_share, work

# The vendor's number of drafts, and the tokens per step that it reports for the sibling Ling-3.0-flash: 3.1 to 3.25.
DRAFTS = 3
GAINED = 3.1


@dataclass(frozen=True, slots=True)
class Speculated:
    """A decode step with drafts.

    drafts: drafted tokens per sequence. tokens: tokens that the step gives each sequence. step_s: its seconds. gain:
    its tokens per second over those of a step without drafts.
    """

    drafts: int
    tokens: float
    step_s: float
    gain: float


def speculated(model: Model, card: Card, tp: int, batch: int, context: int) -> Speculated:
    """The limit of a step with the vendor's drafts, if drafts are accepted as often as the vendor reports.

    batch: sequences. context: tokens of each.
    """
    run = 1 + DRAFTS
    verify = work(model, Step(batch, run, context, batch * run), tp)
    # A step reads the state to verify, then reads and writes it to advance it by the accepted tokens.
    verify = replace(verify, states=verify.states + batch * model.state_bytes(tp))
    passes = [_draft(model, tp, batch, tokens, context) for tokens in (GAINED, *[1.0] * (DRAFTS - 1))]
    seconds = sum(time_of(card, done, tp).seconds for done in (verify, *passes))
    plain = decode_time(model, card, tp, batch, context)
    return Speculated(DRAFTS, GAINED, seconds, GAINED * plain.seconds / seconds)


def _draft(model: Model, tp: int, batch: int, tokens: float, context: int) -> Work:
    """The work of one pass of the MTP layer over `tokens` tokens of each sequence, and of the head on the last one."""
    c, layer = model.config, _layer(model)
    new = batch * tokens
    always = sum(t.rank_bytes(model.scheme, tp) for t in layer if not t.routed)
    routed = sum(t.rank_bytes(model.scheme, tp) for t in layer if t.routed)
    head = c.vocab_size * c.hidden_size / tp
    share = c.num_experts_per_tok / c.num_experts
    products = sum(t.rank_parameters(tp) * (share if t.routed else 1.0) for t in layer if t.matmul)
    heads = c.num_attention_heads / tp
    attention = 2 * new * context * heads * (2 * c.kv_lora_rank + c.qk_rope_head_dim)
    latent = c.latent_width * 2
    return Work(
        weights=always + routed * touched_share(model, round(new)) + head * 2,
        states=0.0,
        latents=float(batch * (context + tokens) * latent),
        bf16_flops=2 * new * products + 2 * batch * head + attention,
        fp8_flops=0.0,
        reduces=3,
        reduce_bytes=new * c.hidden_size * 2,
        gather_bytes=batch * c.vocab_size * 4,
    )


@lru_cache(maxsize=64)
def _layer(model: Model) -> tuple[Tensor, ...]:
    return tuple(tensor for tensor in tensors(model, mtp=True) if tensor.kind == "MTP")
