"""The capacity board: it shows how much more load fits, and which part of the cluster would have to grow."""

from cluster.dashboards.board import Board, Panel, Query, Row
from cluster.dashboards.promql import WINDOW, rate, total, used
from wire.metrics import table as t


def backlog(window: str) -> str:
    """PromQL for the seconds a pool needs for its waiting prompts, at its speed of the window; by role."""
    return f"{total(t.QUEUED_TOKENS, 'role')} / {rate(t.STEP_TOKENS, 'role', window=window)}"


CAPACITY = Board(
    "ling-capacity",
    "Ling / Capacity",
    "How much more load fits, and which part of the cluster would have to grow.",
    (
        Row(
            "Room",
            (
                Panel(
                    "Slots in use", "percentunit",
                    "Share of each pool's state slots in use. If decode is near 100 %, add decode workers or slots.",
                    (Query(used(t.FREE_SLOTS, t.SLOTS, "role"), "{{role}}"),), most=1,
                ),
                Panel(
                    "Pages in use", "percentunit",
                    "Share of each pool's latent pages in use. If decode is near 100 %, add decode workers.",
                    (Query(used(t.FREE_PAGES, t.PAGES, "role"), "{{role}}"),), most=1,
                ),
                Panel(
                    "Routers' queue in use", "percentunit",
                    "Choices in flight over their limit. At 100 % routers answer further requests with 429.",
                    (Query(f"{total(t.IN_FLIGHT)} / {total(t.IN_FLIGHT_LIMIT)}", "in flight"),), most=1,
                ),
            ),
        ),
        Row(
            "Waiting",
            (
                Panel(
                    "Seconds of prompt waiting", "s",
                    "Time each pool needs for its waiting prompts at its present speed. If it is more than a second, "
                    "add prefill workers.",
                    (Query(backlog(WINDOW), "{{role}}"),),
                ),
                Panel(
                    "Sequences waiting", "short", "Sequences that wait for a slot or pages at workers, by pool.",
                    (Query(total(t.QUEUED, "role"), "{{role}}"),), stacked=True,
                ),
                Panel(
                    "Sequences made to wait", "percentunit",
                    "Share of sequences that waited in a router because no worker had room for them.",
                    (Query(f"{rate(t.ROUTING, reason='wait')} / {rate(t.ROUTING, reason='wait|room')}", "wait"),),
                    most=1,
                ),
            ),
        ),
        Row(
            "Speed",
            (
                Panel(
                    "Tokens per second and worker", "short",
                    "Tokens a worker computes in its steps, as the mean of each pool.",
                    (
                        Query(
                            f"{rate(t.STEP_TOKENS, 'role')} / {total(t.WORKERS_LIVE, 'role', how='max')}", "{{role}}"
                        ),
                    ),
                ),
                Panel(
                    "Share of the planner's limit", "percentunit",
                    "The planner's shortest time of the mean step over the measured time, as the mean of each pool. "
                    "Empty without a configured `card`.",
                    (Query(total(t.LIMIT_RATIO, "role", how="avg"), "{{role}}"),), most=1,
                ),
                Panel(
                    "Time in steps", "percentunit",
                    "Share of time in which a worker computes a step, as the mean of each pool.",
                    (
                        Query(
                            f"{rate(t.STEP_SECONDS, 'role', suffix='_sum')} "
                            f"/ {total(t.WORKERS_LIVE, 'role', how='max')}",
                            "{{role}}",
                        ),
                    ),
                    most=1,
                ),
            ),
        ),
        Row(
            "Scaling",
            (
                Panel(
                    "Workers wanted", "short",
                    "Workers that a pool with `max_replicas` needs for its targets, beside those that are live.",
                    (
                        Query(total(t.WORKERS_WANTED, "role", how="max"), "{{role}} wanted"),
                        Query(total(t.WORKERS_LIVE, "role", how="max"), "{{role}} live"),
                    ),
                ),
                Panel(
                    "Running answers by pool", "short",
                    "Sequences that generate tokens, by pool. Prefill workers answer too if decode workers are full.",
                    (Query(total(t.ANSWERING, "role"), "{{role}}"),),
                ),
                Panel(
                    "Start of a worker", "s",
                    "Time from a worker's creation until it took requests; the slowest worker of each pool.",
                    (Query(total(t.LOAD_SECONDS, "role", how="max"), "{{role}}"),),
                ),
            ),
        ),
        Row(
            "Nodes",
            (
                Panel(
                    "Memory in use", "percentunit", "Share of each node's main memory in use, as Ray reports it.",
                    (Query("max by (ip) (ray_node_mem_used) / max by (ip) (ray_node_mem_total)", "{{ip}}"),), most=1,
                ),
            ),
        ),
    ),
)  # fmt: skip
