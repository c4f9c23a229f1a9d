"""The board of experts: how evenly tokens spread over experts and over the ranks that hold them."""

from cluster.dashboards.board import Board, Panel, Query, Row
from cluster.dashboards.promql import rate, shares, total
from wire.metrics import table as t

EXPERTS = Board(
    "ling-experts",
    "Ling / Experts",
    "How evenly tokens spread over experts and over the ranks that hold them; counted in a step now and then.",
    (
        Row(
            "Ranks",
            (
                Panel(
                    "Work by rank", "percentunit", "A step takes as long as its busiest rank; even is 1 / ranks.",
                    (Query(shares(t.EXPERT_TOKENS, "rank", "role"), "{{role}} rank {{rank}}"),), most=1, width=12,
                ),
                Panel(
                    "Choices counted", "short", "Tokens times experts, in the counted steps.",
                    (Query(rate(t.EXPERT_TOKENS, "role"), "{{role}}"),), width=12,
                ),
            ),
        ),
        Row(
            "Layers",
            (
                Panel(
                    "Busiest expert over the mean, worst layer", "none", "1 is even; small batches never are.",
                    (Query(total(t.EXPERT_PEAK, "role", how="max"), "{{role}}"),), width=12,
                ),
                Panel(
                    "Busiest expert over the mean, by layer", "none", "Of all workers' the worst.",
                    (Query(total(t.EXPERT_PEAK, "layer", how="max"), "layer {{layer}}"),), width=12,
                ),
            ),
        ),
    ),
)  # fmt: skip
