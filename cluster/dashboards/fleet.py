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
    "Whether the cluster is up, how much it computes, and whether its users wait.",
    (
        Row(
            "Now",
            (
                _tile(
                    "Workers live", "percentunit",
                    "Live workers over configured workers, in the pool that lacks most.",
                    f"min(clamp_max({total(t.WORKERS_LIVE, 'role', how='max')} "
                    f"/ {total(t.WORKERS_CONFIGURED, 'role', how='max')}, 1))",
                    warn=1, bad=0.5,
                ),
                _tile(
                    "Failed by the cluster", "percentunit",
                    "Share of requests that got no whole answer through the cluster's fault.",
                    f"sum({rate(t.ERRORS, **OURS)}) / sum({rate(t.REQUESTS)})", warn=0.001, bad=0.02,
                ),
                _tile(
                    "First token, p95", "s",
                    "Time from a sequence's submission to its first token, all classes of priority.",
                    f"max({quantile(0.95, t.TTFT)})", warn=2, bad=5,
                ),
                _tile(
                    "Between tokens, p95", "s", "Time between a sequence's tokens, all classes of priority.",
                    f"max({quantile(0.95, t.ITL)})", warn=0.1, bad=0.2,
                ),
                _tile(
                    "Routers' queue in use", "percentunit",
                    "Choices in flight over their limit. At 100 % routers answer further requests with 429.",
                    f"sum({total(t.IN_FLIGHT)}) / sum({total(t.IN_FLIGHT_LIMIT)})", warn=0.7, bad=0.95,
                ),
                _tile(
                    "Generated tokens", "short", "Tokens generated per second by the whole cluster.",
                    f"sum({rate(t.GENERATED_TOKENS)})",
                ),
            ),
        ),
        Row(
            "Up",
            (
                Panel(
                    "Workers", "short",
                    "Live and configured workers of each pool. If fewer are live than configured, one is down.",
                    (
                        Query(total(t.WORKERS_LIVE, "role", how="max"), "{{role}} live"),
                        Query(total(t.WORKERS_CONFIGURED, "role", how="max"), "{{role}} configured"),
                    ),
                ),
                Panel(
                    "In flight", "short",
                    "Choices in flight, those of them that wait for their turn in a router, and the limit beyond which "
                    "routers answer with 429.",
                    (
                        Query(total(t.IN_FLIGHT), "in flight"),
                        Query(total(t.WAITING), "waiting"),
                        Query(total(t.IN_FLIGHT_LIMIT), "limit"),
                    ),
                ),
                Panel(
                    "Errors by class", "reqps",
                    "Requests without a whole answer. `invalid`, `unauthorized`, `throttled` and `left` are not the "
                    "cluster's fault.",
                    (Query(rate(t.ERRORS, "class"), "{{class}}"),), stacked=True,
                ),
            ),
        ),
        Row(
            "Work",
            (
                Panel(
                    "Requests", "reqps", "Requests answered, by API and HTTP status.",
                    (Query(rate(t.REQUESTS, "api", "status"), "{{api}} {{status}}"),), stacked=True,
                ),
                Panel(
                    "Tokens per second", "short", "Prompt tokens accepted and tokens generated.",
                    (Query(rate(t.PROMPT_TOKENS), "prompt"), Query(rate(t.GENERATED_TOKENS), "generated")),
                ),
                Panel(
                    "Cache hit rate", "percentunit",
                    "Share of prompt tokens that the cache saved from being computed, and share of prompts that began "
                    "from a kept snapshot.",
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
                    "Requests by tenant", "reqps", "Requests by tenant. Empty unless routers ask for API keys.",
                    (Query(rate(t.TENANT_REQUESTS, "tenant"), "{{tenant}}"),), stacked=True,
                ),
                Panel(
                    "Tokens by tenant", "short",
                    "Prompt and generated tokens per second, by tenant. Empty unless routers ask for API keys.",
                    (Query(rate(t.TENANT_TOKENS, "tenant", "kind"), "{{tenant}} {{kind}}"),), stacked=True,
                ),
            ),
        ),
        Row(
            "Latency",
            (
                Panel(
                    "Time to first token, p95", "s",
                    "Time from a sequence's submission to its first token, by class of priority.",
                    (Query(quantile(0.95, t.TTFT, "class"), "{{class}}"),),
                ),
                Panel(
                    "Time between tokens, p95", "s", "Time between a sequence's tokens, by class of priority.",
                    (Query(quantile(0.95, t.ITL, "class"), "{{class}}"),),
                ),
                Panel(
                    "Request duration, p95", "s",
                    "Time from a request's arrival to its answer's end, by API; requests answered with 200 only.",
                    (Query(quantile(0.95, t.E2E, "api"), "{{api}}"),),
                ),
            ),
        ),
    ),
)  # fmt: skip
