"""The overview board: it shows whether the cluster is up, how much it computes, and whether users wait."""

from cluster.dashboards.board import Board, Panel, Query, Row, Unit
from cluster.dashboards.promql import quantile, rate, total
from wire.metrics import table as t

OURS = {"class": "internal|unavailable|timeout|stream"}
HIT_TOKENS = rate(t.CACHE_HIT_TOKENS)


def _tile(title: str, unit: Unit, text: str, expr: str, warn: float | None = None, bad: float | None = None) -> Panel:
    return Panel(title, unit, text, (Query(expr, ""),), kind="stat", width=4, height=4, warn=warn, bad=bad)


FLEET = Board(
    "ling-fleet",
    "Ling / Fleet",
    "Whether the cluster is up, how much it does, and whether its users wait.",
    (
        Row(
            "Now",
            (
                _tile(
                    "Workers live", "percentunit", "Of those configured, in the pool that lacks most.",
                    f"min(clamp_max({total(t.WORKERS_LIVE, 'role', how='max')} "
                    f"/ {total(t.WORKERS_CONFIGURED, 'role', how='max')}, 1))",
                    warn=1, bad=0.5,
                ),
                _tile(
                    "Failed by the cluster", "percentunit", "Share of requests without a whole answer.",
                    f"sum({rate(t.ERRORS, **OURS)}) / sum({rate(t.REQUESTS)})", warn=0.001, bad=0.02,
                ),
                _tile(
                    "First token, p95", "s", "From submission, all classes.",
                    f"max({quantile(0.95, t.TTFT)})", warn=2, bad=5,
                ),
                _tile(
                    "Between tokens, p95", "s", "All classes.", f"max({quantile(0.95, t.ITL)})", warn=0.1, bad=0.2,
                ),
                _tile(
                    "Queue in use", "percentunit", "Choices in flight, of those that may be before 429.",
                    f"sum({total(t.IN_FLIGHT)}) / sum({total(t.IN_FLIGHT_LIMIT)})", warn=0.7, bad=0.95,
                ),
                _tile("Tokens a second", "short", "Generated.", f"sum({rate(t.GENERATED_TOKENS)})"),
            ),
        ),
        Row(
            "Up",
            (
                Panel(
                    "Workers", "short", "By pool, live ones and those configured. Fewer live: one is down.",
                    (
                        Query(total(t.WORKERS_LIVE, "role", how="max"), "{{role}} live"),
                        Query(total(t.WORKERS_CONFIGURED, "role", how="max"), "{{role}} configured"),
                    ),
                ),
                Panel(
                    "In flight", "short",
                    "Choices under way, those of them that wait for their turn, and how many there may be before 429.",
                    (
                        Query(total(t.IN_FLIGHT), "in flight"),
                        Query(total(t.WAITING), "waiting"),
                        Query(total(t.IN_FLIGHT_LIMIT), "limit"),
                    ),
                ),
                Panel(
                    "Errors by class", "reqps", "Requests without a whole answer. invalid and left are the clients'.",
                    (Query(rate(t.ERRORS, "class"), "{{class}}"),), stacked=True,
                ),
            ),
        ),
        Row(
            "Work",
            (
                Panel(
                    "Requests", "reqps", "By API and HTTP status.",
                    (Query(rate(t.REQUESTS, "api", "status"), "{{api}} {{status}}"),), stacked=True,
                ),
                Panel(
                    "Tokens a second", "short", "Prompt tokens accepted and tokens generated.",
                    (Query(rate(t.PROMPT_TOKENS), "prompt"), Query(rate(t.GENERATED_TOKENS), "generated")),
                ),
                Panel(
                    "Cache hit rate", "percentunit",
                    "Prompt tokens that were not computed, of all; prompts that began from a kept snapshot, of all.",
                    (
                        Query(f"{HIT_TOKENS} / ({HIT_TOKENS} + {rate(t.CACHE_MISSED_TOKENS)})", "of tokens"),
                        # Each prompt computes a token at least, so that it counts among the misses.
                        Query(f"{rate(t.CACHE_HITS)} / {rate(t.CACHE_MISSES)}", "of prompts"),
                    ),
                    most=1,
                ),
                Panel(
                    "Batch lines", "reqps", "Lines of batches answered, by status.",
                    (Query(rate(t.BATCH_LINES, "status"), "{{status}}"),), stacked=True,
                ),
                Panel(
                    "Requests by tenant", "reqps", "Only where keys are asked for.",
                    (Query(rate(t.TENANT_REQUESTS, "tenant"), "{{tenant}}"),), stacked=True,
                ),
                Panel(
                    "Tokens by tenant", "short", "A second, of prompts and of answers. Only where keys are asked for.",
                    (Query(rate(t.TENANT_TOKENS, "tenant", "kind"), "{{tenant}} {{kind}}"),), stacked=True,
                ),
            ),
        ),
        Row(
            "Latency",
            (
                Panel(
                    "Time to first token, p95", "s", "From submission, by class of priority.",
                    (Query(quantile(0.95, t.TTFT, "class"), "{{class}}"),),
                ),
                Panel(
                    "Between tokens, p95", "s", "By class of priority.",
                    (Query(quantile(0.95, t.ITL, "class"), "{{class}}"),),
                ),
                Panel(
                    "Whole answers, p95", "s", "From arrival to the answer's end, by API.",
                    (Query(quantile(0.95, t.E2E, "api"), "{{api}}"),),
                ),
            ),
        ),
    ),
)  # fmt: skip
