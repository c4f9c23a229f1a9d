"""The planner's cost model as a few coefficients, with which a router predicts a request's time at a worker."""

from dataclasses import dataclass

from planner.cards import Card
from planner.model import Model
from planner.speed import gather_seconds, step_time
from planner.traffic import snapshot_bytes
from planner.work import Step

# Batches (sequences) and contexts (tokens) between which a step's time is taken as linear.
_BATCHES = (16, 128)
_CONTEXTS = (0, 65_536)
_DECODE_CONTEXT = 8_192


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Coefficients of the cost model, in seconds unless named otherwise.

    token_s: time of one prompt token in a full chunk without context; knee_tokens: the context, in tokens, that doubles
    it. A decode step takes step_s, and sequence_s more for each sequence, and context_s more for each token of context.
    state_s, latent_s: time to move a sequence's state, and one token's latents, to another worker.
    """

    token_s: float
    knee_tokens: float
    step_s: float
    sequence_s: float
    context_s: float
    state_s: float
    latent_s: float


def coefficients(model: Model, card: Card, tp: int, step_tokens: int, network: float) -> Coefficients:
    """The coefficients of a worker with tp cards, whose steps compute up to `step_tokens` prompt tokens.

    network: bytes/s that one card sends to other workers.
    """

    def decode(batch: int, context: int) -> float:
        return step_time(model, card, tp, Step(batch, 1, context, batch)).seconds

    def chunk(past: int) -> float:
        return step_time(model, card, tp, Step(1, step_tokens, past, 0)).seconds

    few, many = _BATCHES
    near, far = _CONTEXTS
    context_s = (decode(many, far) - decode(many, near)) / (many * (far - near))
    # A chunk's own tokens are context of its later ones.
    more = (chunk(far) - chunk(near)) / (far - near)
    knee = chunk(near) / more - step_tokens / 2 if more > 0 else float(1 << 40)
    sequence_s = (decode(many, _DECODE_CONTEXT) - decode(few, _DECODE_CONTEXT)) / (many - few)
    sequence_s -= context_s * _DECODE_CONTEXT
    sent = snapshot_bytes(model, 0) / tp / network
    latent = model.latent_bytes()
    gather = gather_seconds(card, tp, latent * far) / far
    return Coefficients(
        token_s=chunk(near) / step_tokens / (1.0 + step_tokens / 2 / knee),
        knee_tokens=knee,
        step_s=decode(few, 0) - sequence_s,
        sequence_s=sequence_s,
        context_s=context_s,
        state_s=sent,
        latent_s=latent / tp / network + gather,
    )
