"""Makes docs/METRICS.md from the table of metrics."""

from collections.abc import Iterator

from wire.metrics.table import TABLE, Source

_HEAD = """# Metrics

Two kinds of pages show the metrics:

- **Each router's `/metrics`** (`http://HOST:8000/metrics`) has that router's own metrics, and each worker's load as the
  worker last reported it.
- **Each Ray node's metrics agent** (`/metrics` at Ray's metrics export port) has the metrics of the routers and workers
  on the node, with `ray_` before each name, and Ray's own metrics. The boards and alerts read these. `ling serve` binds
  the agent to loopback, at `--metrics-port` or any free port; elsewhere `ray start --metrics-export-port` sets the
  port. The chart's PodMonitor (`podMonitor.enabled`) scrapes the agent and keeps the metrics that the boards read.

Both show the same recorded values. Ray's page is some seconds behind: routers and workers hand their values to Ray
once a second, Ray publishes them every 10 s (`RAY_metrics_report_interval_ms`), and drops the series of an ended
process after twice that time.

Ray's page declares every metric a `gauge`, because routers and workers hand over cumulative values as they are; so
counters begin at 0 and sums are exact. `rate()`, `increase()` and `histogram_quantile()` work on them as on any counter
or histogram.

Ray's page has labels that are not in the tables: `router`, the id of the router that recorded the value, and Ray's own
(`WorkerId`, `SessionName`, …). No label's value comes from a request's text.

- `class` of latencies: `high`, `normal` and `low` stand for a request's `priority` below, at and above 0; `batch` for
  lines of batches. `class` of errors: `invalid` and `unauthorized` are the client's fault, `throttled` is a 429, and
  `left` is a client that hung up; `internal`, `unavailable`, `timeout` and `stream` (an answer that failed after its
  head was sent) are the cluster's fault.
- `reason` of routing decisions: `room` (workers had room), `wait` (no worker had room, so the sequence waited for its
  turn), or why no workers could take the sequence. `reason` of transfer failures: `link` (a connection between two
  ranks broke), `peer` (the other worker ended or refused), `refused` (the prefill worker has no such snapshot),
  `mismatch` (the two workers differ in prompt, model or layout), `timeout` (nobody took the snapshot in time).
- `role`: `prefill` or `decode`. `worker`: the worker's id, which is new with each start.

Some metrics are sampled: ranks measure `ling_rank_phase_seconds_total` in one step a second, and `ling_expert_…` in as
many or fewer. Use their shares and ratios; their sums mean nothing. Ranks report their totals with these steps, so
`ling_transfer_…` may be a second old, and older while a worker has nothing to do.

`ling dashboards push --url https://grafana.example --folder Ling --datasource Prometheus` creates or updates the boards
of `dashboards/*.json` in a Grafana, and leaves those alone that have not changed. It reads a service account's token
from `GRAFANA_TOKEN` (`--token-env` names another variable) and needs `pip install -e '.[dashboards]'`. The Helm chart
installs the same boards as ConfigMaps (`dashboards.enabled`) without the command. On one machine, `docker compose up`
starts Prometheus and Grafana with the boards, at http://127.0.0.1:3000.

Boards and alerts keep clusters apart by the labels `cluster` and `namespace`, which the scraper must add. The chart's
PodMonitor adds them (`cluster` is the release); `cluster/dashboards/compose/prometheus.yaml` shows how.
The board "GPUs" reads NVIDIA's DCGM exporter.

`dashboards/alerts.yaml` holds the alert rules for Prometheus; the chart installs them as a PrometheusRule for the
release's own metrics (`prometheusRule.enabled`). [RUNBOOK.md](RUNBOOK.md) says what to do about each alert.
"""

_SOURCES: dict[Source, str] = {
    "router": "Routers' metrics",
    "both": "Workers' load (on routers' `/metrics` too)",
    "worker": "Workers' metrics",
    "pool": "Pools' metrics (on Ray's page of the node that runs Serve's controller)",
}


def metrics_page() -> str:
    """The whole page, in Markdown."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield _HEAD
    for source, title in _SOURCES.items():
        yield f"## {title}\n"
        yield "| name | kind | unit | labels | meaning |"
        yield "|---|---|---|---|---|"
        for m in TABLE:
            if m.source == source:
                labels = ", ".join(f"`{label}`" for label in m.labels)
                yield f"| `{m.name}` | {m.kind} | {m.unit} | {labels} | {m.text} |"
        yield ""
    yield "## Buckets\n"
    for m in TABLE:
        if m.kind == "histogram":
            yield f"- `{m.name}`: {', '.join(f'{bound:g}' for bound in m.buckets)} {m.unit}"
    yield ""
