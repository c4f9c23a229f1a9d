"""docs/METRICS.md, from the table of metrics."""

from collections.abc import Iterator

from wire.metrics.table import TABLE, Source

_HEAD = """# Metrics

Where they are:

- **Each router's `/metrics`** (`http://HOST:8000/metrics`) has that router's own figures, and each worker's load as it
  last told it.
- **Each Ray node's metrics agent** (`/metrics` at Ray's metrics export port) has those of the routers and workers on
  the node, with `ray_` before each name and Ray's own metrics beside them. The boards and alerts read these. `ling
  serve` binds the agent to loopback, at `--metrics-port` or any free port; elsewhere `--metrics-export-port` of `ray
  start` fixes it. The chart scrapes it by a PodMonitor (`podMonitor.enabled`), and keeps what the boards read.

Both come from the same recorded values. Ray's page is some seconds behind: routers and workers hand their values over
once a second, Ray passes them on every 10 s (`RAY_metrics_report_interval_ms`), and the series of a process that has
ended leave after twice that.

Ray's page says `gauge` of all of them: cumulative values are handed over as they are, so that counters begin at 0 and
sums are exact. `rate()`, `increase()` and `histogram_quantile()` work on them as on any counter or histogram.

Labels of Ray's page that are not in the tables: `router`, whose figures they are, and Ray's own (`WorkerId`,
`SessionName`, …). No label's value comes from a request's text.

- `class`, of latencies: `high`, `normal`, `low` for a request's `priority` below, at and above 0; `batch` for lines of
  batches. Of errors: `invalid` and `unauthorized` are the client's fault, `throttled` is 429, `left` hung up;
  `internal`, `unavailable`, `timeout` and `stream` (failed after its head had left) are the cluster's.
- `reason`, of routing: `room`, `wait` (none has room, so that it waits for its turn), or why no pair of workers
  could take it. Of transfer failures: `link` broke between two ranks, `peer` is gone or refuses, `refused` by a prefill
  worker that has no such snapshot, `mismatch` of prompt, model or layout, `timeout` as nobody took it.
- `role`: `prefill` or `decode`. `worker`: its id, new with each start.

What is measured in a step now and then (`ling_rank_phase_seconds_total` in one a second, `ling_expert_…` in as many or
fewer) is a sample: its shares and ratios mean something, its sums do not. Ranks tell their totals with such steps, so
those of `ling_transfer_…` may be a second old, and stay so while a worker has nothing to do.

Boards: `ling dashboards push --url https://grafana.example --folder Ling --datasource Prometheus`, with a service
account's token in `GRAFANA_TOKEN` (`--token-env` names another variable), makes or updates those of
`dashboards/*.json`, and changes nothing where nothing has changed; the Helm chart brings the same as ConfigMaps
(`dashboards.enabled`). The command needs `pip install -e '.[dashboards]'`; Helm does not. On one box `docker compose
up` brings Prometheus and Grafana with the boards already there, at http://127.0.0.1:3000.

Boards and alerts keep clusters apart by the labels `cluster` and `namespace`, which whoever scrapes adds: the chart's
PodMonitor does (`cluster` is the release), and `cluster/dashboards/compose/prometheus.yaml` shows how. The board "GPUs"
reads NVIDIA's DCGM exporter.

Alert rules for Prometheus: `dashboards/alerts.yaml`; the chart makes a PrometheusRule of them, for the release's own
figures (`prometheusRule.enabled`). What to do about each: [RUNBOOK.md](RUNBOOK.md).
"""

_SOURCES: dict[Source, str] = {
    "router": "Routers'",
    "both": "Workers' load (on routers' `/metrics` too)",
    "worker": "Workers'",
    "pool": "Pools' (on Ray's page of the node that runs Serve's controller)",
}


def metrics_page() -> str:
    """The whole page."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield _HEAD
    for source, title in _SOURCES.items():
        yield f"## {title}\n"
        yield "| name | kind | unit | labels | |"
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
