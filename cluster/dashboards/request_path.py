"""The board of a request's path: where its time goes, from the router to its last token."""

from cluster.dashboards.board import Board, Panel, Query, Row
from cluster.dashboards.promql import buckets, mean, quantile, rate, total
from wire.metrics import table as t
from wire.metrics.table import Metric


def _spread(title: str, metric: Metric, text: str) -> Panel:
    shares = tuple(Query(quantile(share, metric), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99))
    return Panel(title, "s", text, (*shares, Query(mean(metric), "mean")))


REQUEST_PATH = Board(
    "ling-request-path",
    "Ling / Request path",
    "Where a request's time goes, from the router to its last token.",
    (
        Row(
            "As clients see it",
            (
                _spread("Time to first token", t.TTFT, "From submission to the workers to the first token's arrival."),
                _spread("Between tokens", t.ITL, "As they arrive at the router."),
                Panel(
                    "Prompt lengths", "none", "Prompts a second by tokens.",
                    (Query(buckets(t.PROMPT_LENGTH), "{{le}}"),), kind="heatmap",
                ),
                Panel(
                    "First tokens", "s", "First tokens a second by the time they took.",
                    (Query(buckets(t.TTFT), "{{le}}"),), kind="heatmap",
                ),
                Panel(
                    "Answer lengths", "none", "Answers a second by tokens.",
                    (Query(buckets(t.ANSWER_LENGTH), "{{le}}"),), kind="heatmap",
                ),
                Panel(
                    "Resumed", "reqps", "Sequences that went on at other workers after theirs failed them, by cause.",
                    (Query(rate(t.RESUMED, "cause"), "{{cause}}"),), stacked=True,
                ),
                _spread("Whole answers", t.E2E, "From arrival to the answer's end, of requests answered with 200."),
            ),
        ),
        Row(
            "Admission and routing",
            (
                Panel(
                    "Routing", "reqps", "room: both workers had it; wait: for its turn; others: there was no pair.",
                    (Query(rate(t.ROUTING, "reason"), "{{reason}}"),), stacked=True,
                ),
                Panel(
                    "Refused", "reqps",
                    "429: the router's queue or a tenant's is full, or a key is beyond its limits; 503: by a deadline.",
                    (Query(rate(t.REFUSED), "429"), Query(rate(t.LATE), "deadline")),
                ),
                Panel(
                    "Waiting at workers", "short", "Sequences that wait for room, by pool.",
                    (Query(total(t.QUEUED, "role"), "{{role}}"),), stacked=True,
                ),
                Panel(
                    "Router held up", "s", "The longest a router's loop stood still in a minute. Normal: some ms.",
                    (Query(total(t.LOOP_HOLD, how="max"), "longest"),),
                ),
            ),
        ),
        Row(
            "From prefill to decode",
            (
                Panel(
                    "Prompt tokens waiting", "short", "Not yet computed, by pool.",
                    (Query(total(t.QUEUED_TOKENS, "role"), "{{role}}"),), stacked=True,
                ),
                _spread("Transfer", t.TRANSFER_SECONDS, "From a prompt's end until its snapshot is whole."),
                Panel(
                    "Taken up elsewhere", "reqps",
                    "Sequences that went on at other workers, because one ended (death) or a snapshot did not come.",
                    (Query(rate(t.RESUMED, "cause"), "{{cause}}"),), stacked=True,
                ),
                Panel(
                    "Transfer failures", "reqps", "Snapshots that did not come. Normal: none.",
                    (Query(rate(t.TRANSFER_FAILURES, "reason"), "{{reason}}"),), stacked=True,
                ),
            ),
        ),
    ),
)  # fmt: skip
