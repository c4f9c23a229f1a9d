"""The experts board: it shows how evenly tokens spread over experts and over the ranks that hold them."""

from cluster.dashboards.board import Board, Panel, Query, Row
from cluster.dashboards.promql import rate, shares, total
from wire.metrics import table as t

EXPERTS = Board(
    "ling-experts",
    "Ling / Experts",
    "How evenly tokens spread over experts and over the ranks that hold them. Ranks count at most once a second.",
    (
        Row(
            "Ranks",
            (
                Panel(
                    "Expert work by rank", "percentunit",
                    "Each rank's share of its pool's tokens times experts. A step takes as long as its busiest rank; "
                    "an even share is 1 / ranks.",
                    (Query(shares(t.EXPERT_TOKENS, "rank", "role"), "{{role}} rank {{rank}}"),), most=1, width=12,
                ),
                Panel(
                    "Tokens times experts counted", "short",
                    "Tokens times their chosen experts, per second, in the sampled steps only.",
                    (Query(rate(t.EXPERT_TOKENS, "role"), "{{role}}"),), width=12,
                ),
            ),
        ),
        Row(
            "Layers",
            (
                Panel(
                    "Busiest expert over the mean, worst layer", "none",
                    "Tokens of the busiest expert over its layer's mean. 1 is even; small batches are never even.",
                    (Query(total(t.EXPERT_PEAK, "role", how="max"), "{{role}}"),), width=12,
                ),
                Panel(
                    "Busiest expert over the mean, by layer", "none",
                    "Tokens of each layer's busiest expert over the layer's mean, at the worker where it is highest.",
                    (Query(total(t.EXPERT_PEAK, "layer", how="max"), "layer {{layer}}"),), width=12,
                ),
            ),
        ),
    ),
)  # fmt: skip
