"""The alerts as Prometheus rules. docs/RUNBOOK.md says, under each alert's name, what to do about it."""

from dataclasses import dataclass
from typing import Any, Literal

from cluster.dashboards.capacity import backlog
from cluster.dashboards.fleet import OURS
from cluster.dashboards.promql import quantile, rate, series, total, unchosen, used
from wire.metrics import table as t

_LIVE, _CONFIGURED = (total(metric, "role", how="max") for metric in (t.WORKERS_LIVE, t.WORKERS_CONFIGURED))
_WAITED_FOR = {"class": "high|normal"}


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert. expr: its condition in PromQL. lasts: how long the condition must hold, in Prometheus' notation.

    severity: `critical` where users get no answers, `warning` where they wait, `info` where GPUs are used badly.
    summary: what is wrong, as a template of Prometheus.
    """

    name: str
    expr: str
    lasts: str
    severity: Literal["critical", "warning", "info"]
    summary: str


ALERTS = (
    Alert("LingNoMetrics", f"absent({series(t.IN_FLIGHT)})", "2m", "critical", "No router reports its metrics."),
    Alert(
        "LingPoolDown", f"{_LIVE} == 0 and {_CONFIGURED} > 0", "30s", "critical",
        "No {{ $labels.role }} worker is live; the other pool serves its requests as far as it can.",
    ),
    Alert(
        "LingWorkerMissing", f"{_LIVE} < {_CONFIGURED}", "5m", "warning",
        "Fewer {{ $labels.role }} workers are live than configured.",
    ),
    Alert(
        "LingErrors",
        f"{rate(t.ERRORS, window='5m', **OURS)} / ({rate(t.REQUESTS, window='5m')} > 0) > 0.02", "5m",
        "critical", "{{ $value | humanizePercentage }} of requests fail through the cluster's fault.",
    ),
    Alert(
        "LingRefusing", f"{rate(t.REFUSED, window='5m')} / ({rate(t.REQUESTS, window='5m')} > 0) > 0.05", "10m",
        "warning", "{{ $value | humanizePercentage }} of requests are answered with 429.",
    ),
    Alert(
        "LingSlowFirstToken", f"{quantile(0.95, t.TTFT, window='5m', **_WAITED_FOR)} > 5", "10m", "warning",
        "One in twenty sequences waits {{ $value | humanizeDuration }} for its first token.",
    ),
    Alert(
        "LingSlowTokens", f"{quantile(0.95, t.ITL, window='5m', **_WAITED_FOR)} > 0.2", "10m", "warning",
        "One in twenty tokens comes {{ $value | humanizeDuration }} after the one before.",
    ),
    Alert(
        "LingSlotsFull", f"{used(t.FREE_SLOTS, t.SLOTS, 'role')} > 0.95", "10m", "warning",
        "{{ $value | humanizePercentage }} of the {{ $labels.role }} pool's slots are in use.",
    ),
    Alert(
        "LingPagesFull", f"{used(t.FREE_PAGES, t.PAGES, 'role')} > 0.95", "10m", "warning",
        "{{ $value | humanizePercentage }} of the {{ $labels.role }} pool's pages are in use.",
    ),
    Alert(
        "LingPromptBacklog", f"({backlog('5m')}) > 10", "5m", "warning",
        "The {{ $labels.role }} pool needs {{ $value | humanizeDuration }} to compute the prompts that wait.",
    ),
    Alert(
        "LingTransferFailures",
        f"sum by (cluster, namespace, reason) (increase({series(t.TRANSFER_FAILURES)}[10m])) > 3",
        "0m", "warning",
        "Snapshots do not arrive at decode workers; the reason is {{ $labels.reason }}.",
    ),
    Alert(
        "LingSlowTransfers", f"{quantile(0.95, t.TRANSFER_SECONDS, window='10m', role='decode')} > 1", "10m", "warning",
        "One in twenty snapshots takes {{ $value | humanizeDuration }} to reach its decode worker.",
    ),
    Alert(
        "LingUnevenExperts",
        f"max by (cluster, namespace, role) ({rate(t.EXPERT_TOKENS, 'role', 'rank', window='30m')}) "
        f"/ avg by (cluster, namespace, role) ({rate(t.EXPERT_TOKENS, 'role', 'rank', window='30m')}) > 1.5",
        "30m", "info",
        "The busiest rank of the {{ $labels.role }} pool has {{ $value | humanize }} times the mean rank's work.",
    ),
    Alert(
        "LingFarFromLimit", f"{total(t.LIMIT_RATIO, 'role', how='avg')} < 0.1", "30m", "info",
        "The {{ $labels.role }} pool's steps reach {{ $value | humanizePercentage }} of the planner's limit.",
    ),
)  # fmt: skip


def rules() -> dict[str, Any]:
    """The rules as a Prometheus rule file."""
    return {
        "groups": [
            {
                "name": "ling",
                "rules": [
                    {
                        "alert": alert.name,
                        "expr": unchosen(alert.expr),
                        "for": alert.lasts,
                        "labels": {"severity": alert.severity},
                        "annotations": {"summary": alert.summary, "runbook": f"docs/RUNBOOK.md#{alert.name.lower()}"},
                    }
                    for alert in ALERTS
                ],
            }
        ]
    }
