"""The routing policy's costs at a router's start."""

from dataclasses import asdict

from cluster.config import ClusterConfig
from planner.cards import find_card
from planner.coefficients import coefficients
from planner.model import load_model
from router.relay.costs import Costs
from workers.sizes import PREFILL_STEP_TOKENS


def costs_of(config: ClusterConfig, model: str) -> Costs:
    """Return the costs that the planner predicts for `card`, or the defaults without one. Routers prefer measurements.

    model: the checkpoint's folder. That the card exists was checked when the config was resolved.
    """
    itl_s = config.router.inter_token_target_s
    if config.card is None:
        return Costs(itl_s=itl_s)
    found = coefficients(
        load_model(model),
        find_card(config.card),
        config.decode.tp,
        config.max_step_tokens or PREFILL_STEP_TOKENS,
        config.handoff.network_gb_s * 1e9,
    )
    return Costs(**asdict(found), itl_s=itl_s)
