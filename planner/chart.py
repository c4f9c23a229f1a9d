"""Writes the planner's figures with which the Helm chart checks that a pool fits on its cards.

Run `python -m planner.chart > helm/files/memory.json`. The chart's templates compute with whole numbers only, so the
figures are MiB and KiB of one card, rounded to the safe side.
"""

import json
from typing import Any

from planner.cards import cards
from planner.counts import weight_bytes
from planner.memory import (
    CONTEXT_BYTES,
    Layout,
    activation_bytes,
    logit_bytes,
)
from planner.model import FORMATS, RELEASED, Model, load_model
from workers.memory import GRAPH_BYTES, MARGIN_SHARE

KIB, MIB = 1 << 10, 1 << 20
STEP_TOKENS = (1024, 2048, 4096, 8192)


def table() -> dict[str, Any]:
    """The memory that a worker of the released model needs of each card, by format and tp, and the cards' memory.

    cards: usable MiB of each card, without the allocator's margin. reserved_mib: for graphs, CUDA context and buffers.
    state_kib: one rank's share of a state; slot_kib: the same with its logits. activations_mib: by longest sequence,
    then by tokens of a step; the longest sequences are the checkpoint's and twice that, with YaRN. token_bytes: one
    token's latents.
    """
    models = {weights: load_model(RELEASED, weights) for weights in FORMATS}
    any_model = models["bf16"]
    return {
        "model": RELEASED,
        "context": any_model.config.max_model_len,
        "token_bytes": any_model.latent_bytes(mtp=True),
        "reserved_mib": _up(GRAPH_BYTES + CONTEXT_BYTES, MIB),
        "step_tokens": list(STEP_TOKENS),
        "contexts": list(_contexts(any_model)),
        "cards": {card.name: int(card.memory * (1 - MARGIN_SHARE)) // MIB for card in cards().values()},
        "formats": {
            weights: {str(tp): _rank(model, tp) for tp in model.allowed_tp()} for weights, model in models.items()
        },
    }


def _rank(model: Model, tp: int) -> dict[str, Any]:
    return {
        "weights_mib": _up(sum(weight_bytes(model, model.has_mtp, tp).values()), MIB),
        "state_kib": _up(model.state_bytes(tp), KIB),
        "slot_kib": _up(model.state_bytes(tp) + logit_bytes(model), KIB),
        "activations_mib": {
            str(context): {
                str(step): _up(activation_bytes(model, Layout(tp, context, context, step_tokens=step)), MIB)
                for step in STEP_TOKENS
            }
            for context in _contexts(model)
        },
    }


def _contexts(model: Model) -> tuple[int, int]:
    return model.config.max_model_len, 2 * model.config.max_model_len


def _up(size: int, unit: int) -> int:
    return -(-size // unit)


if __name__ == "__main__":
    print(json.dumps(table(), indent=2))
