"""The board of capacity: how much more load fits, and what would have to grow."""

from cluster.dashboards.board import Board, Panel, Query, Row
from cluster.dashboards.promql import WINDOW, rate, total, used
from wire.metrics import table as t


def backlog(window: str) -> str:
    """Seconds of prompt that wait for the prefill workers, at their speed in the window."""
    return f"{total(t.QUEUED_TOKENS, 'role')} / {rate(t.STEP_TOKENS, 'role', window=window)}"


CAPACITY = Board(
    "ling-capacity",
    "Ling / Capacity",
    "How much more would fit, and what would have to grow.",
    (
        Row(
            "Room",
            (
                Panel(
                    "Slots in use", "percentunit", "By pool. Decode near 100 %: add decode workers or slots.",
                    (Query(used(t.FREE_SLOTS, t.SLOTS, "role"), "{{role}}"),), most=1,
                ),
                Panel(
                    "Pages in use", "percentunit", "By pool. Decode near 100 %: add decode workers.",
                    (Query(used(t.FREE_PAGES, t.PAGES, "role"), "{{role}}"),), most=1,
                ),
                Panel(
                    "Router's queue in use", "percentunit", "Choices in flight, of those that may be.",
                    (Query(f"{total(t.IN_FLIGHT)} / {total(t.IN_FLIGHT_LIMIT)}", "in flight"),), most=1,
                ),
            ),
        ),
        Row(
            "Waiting",
            (
                Panel(
                    "Seconds of prompt waiting", "s", "At the speed of now. Above a second: add prefill workers.",
                    (Query(backlog(WINDOW), "{{role}}"),),
                ),
                Panel(
                    "Sequences waiting", "short", "By pool.",
                    (Query(total(t.QUEUED, "role"), "{{role}}"),), stacked=True,
                ),
                Panel(
                    "Made to wait", "percentunit", "Share of sequences that found no room at once.",
                    (Query(f"{rate(t.ROUTING, reason='wait')} / {rate(t.ROUTING, reason='wait|room')}", "wait"),),
                    most=1,
                ),
            ),
        ),
        Row(
            "Speed",
            (
                Panel(
                    "Tokens a second and worker", "short", "Computed in steps, the mean of each pool.",
                    (
                        Query(
                            f"{rate(t.STEP_TOKENS, 'role')} / {total(t.WORKERS_LIVE, 'role', how='max')}", "{{role}}"
                        ),
                    ),
                ),
                Panel(
                    "Share of the planner's limit", "percentunit",
                    "Of the shortest a mean step could take on the configured card; nothing without one.",
                    (Query(total(t.LIMIT_RATIO, "role", how="avg"), "{{role}}"),), most=1,
                ),
                Panel(
                    "Busy", "percentunit", "Share of time in steps, the mean of each pool.",
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
                    "Workers wanted", "short", "What pools that scale need for their targets, and how many are live.",
                    (
                        Query(total(t.WORKERS_WANTED, "role", how="max"), "{{role}} wanted"),
                        Query(total(t.WORKERS_LIVE, "role", how="max"), "{{role}} live"),
                    ),
                ),
                Panel(
                    "Answered by", "short", "Running answers by pool: prefill workers help a decode pool that starves.",
                    (Query(total(t.ANSWERING, "role"), "{{role}}"),),
                ),
                Panel(
                    "Start of a worker", "s", "From its creation until it took requests, the slowest of each pool.",
                    (Query(total(t.LOAD_SECONDS, "role", how="max"), "{{role}}"),),
                ),
            ),
        ),
        Row(
            "Nodes",
            (
                Panel(
                    "Memory in use", "percentunit", "Of each node, as Ray tells it.",
                    (Query("max by (ip) (ray_node_mem_used) / max by (ip) (ray_node_mem_total)", "{{ip}}"),), most=1,
                ),
            ),
        ),
    ),
)  # fmt: skip
