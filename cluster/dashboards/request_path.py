"""The request-path board: it shows where a request's time goes, from the router to its last token."""

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
                _spread(
                    "Time to first token", t.TTFT,
                    "Time from a sequence's submission to its first token's arrival at the router.",
                ),
                _spread(
                    "Time between tokens", t.ITL, "Time between a sequence's tokens, as they arrive at the router.",
                ),
                Panel(
                    "Prompt lengths", "none", "Accepted prompts per second, by their number of tokens.",
                    (Query(buckets(t.PROMPT_LENGTH), "{{le}}"),), kind="heatmap",
                ),
                Panel(
                    "First tokens", "s", "First tokens per second, by the time to the first token.",
                    (Query(buckets(t.TTFT), "{{le}}"),), kind="heatmap",
                ),
                Panel(
                    "Answer lengths", "none", "Finished choices per second, by their number of generated tokens.",
                    (Query(buckets(t.ANSWER_LENGTH), "{{le}}"),), kind="heatmap",
                ),
                Panel(
                    "Sequences resumed elsewhere", "reqps",
                    "Sequences that went on at other workers, by cause: a worker's death or silence, a failed "
                    "transfer, or a worker that moved them away.",
                    (Query(rate(t.RESUMED, "cause"), "{{cause}}"),), stacked=True,
                ),
                _spread(
                    "Request duration", t.E2E,
                    "Time from a request's arrival to its answer's end; requests answered with 200 only.",
                ),
            ),
        ),
        Row(
            "Admission and routing",
            (
                Panel(
                    "Routing decisions", "reqps",
                    "Sequences by decision. `room`: the workers had room; `wait`: the sequence waited for its turn; "
                    "others: the reason why no workers could take it.",
                    (Query(rate(t.ROUTING, "reason"), "{{reason}}"),), stacked=True,
                ),
                Panel(
                    "Requests refused", "reqps",
                    "`429`: the router's or the tenant's queue is full, or a key is beyond its limits. `deadline`: "
                    "503, because the first token could not come within the request's deadline.",
                    (Query(rate(t.REFUSED), "429"), Query(rate(t.LATE), "deadline")),
                ),
                Panel(
                    "Sequences waiting at workers", "short", "Sequences that wait for a slot or pages, by pool.",
                    (Query(total(t.QUEUED, "role"), "{{role}}"),), stacked=True,
                ),
                Panel(
                    "Router's event loop held up", "s",
                    "The longest time within the last minute that a router's event loop, and so its streams, stood "
                    "still. Normal: some milliseconds.",
                    (Query(total(t.LOOP_HOLD, how="max"), "longest"),),
                ),
            ),
        ),
        Row(
            "From prefill to decode",
            (
                Panel(
                    "Prompt tokens waiting", "short", "Prompt tokens at workers that are not yet computed, by pool.",
                    (Query(total(t.QUEUED_TOKENS, "role"), "{{role}}"),), stacked=True,
                ),
                _spread(
                    "Snapshot transfer", t.TRANSFER_SECONDS,
                    "Time from a prompt's last computed token until the decode worker has the whole snapshot.",
                ),
                Panel(
                    "Transfer failures", "reqps",
                    "Sequences whose snapshot did not arrive at the decode worker, by reason. Normal: none.",
                    (Query(rate(t.TRANSFER_FAILURES, "reason"), "{{reason}}"),), stacked=True,
                ),
            ),
        ),
    ),
)  # fmt: skip
