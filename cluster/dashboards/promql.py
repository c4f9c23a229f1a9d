"""Makes PromQL from the table of metrics. A label that a metric does not have raises ValueError."""

from typing import Literal

from wire.metrics.table import Metric

# Ray's prefix of every metric.
PREFIX = "ray_"
# Grafana's variable: a window that is long enough for a rate with any scrape interval.
WINDOW = "$__rate_interval"
# The labels of a release and its namespace, which the scraper adds. Every expression keeps them, so that the series of
# two clusters stay apart.
SCOPE = ("cluster", "namespace")
# A board's variables, by the label they choose.
VARIABLES = {"cluster": "$cluster", "namespace": "$namespace", "role": "$pool", "worker": "$worker"}


def series(metric: Metric, suffix: str = "", **match: str) -> str:
    """The selector of a metric's series that a board's variables choose.

    suffix: of a histogram's series, e.g. `_sum`. match: a regular expression for each label to narrow further.
    """
    _check(metric, *match)
    chosen = {label: name for label, name in VARIABLES.items() if label in (*SCOPE, *metric.labels)}
    matchers = ",".join(f'{label}=~"{pattern}"' for label, pattern in (chosen | match).items())
    return f"{PREFIX}{metric.name}{suffix}{{{matchers}}}"


def unchosen(expr: str) -> str:
    """Replace a board's variables in an expression, for alerts: it matches all clusters, pools and workers.

    The matchers of `cluster` and `namespace` stay, as `.*`, so that the Helm chart can narrow them to its release.
    """
    for label, name in VARIABLES.items():
        matcher = f'{label}=~"{name}"'
        expr = expr.replace(matcher, f'{label}=~".*"') if label in SCOPE else expr.replace(f",{matcher}", "")
    return expr


def total(metric: Metric, *by: str, how: Literal["sum", "max", "avg"] = "sum", **match: str) -> str:
    """A gauge's sum (or `how`) over all processes that report it, by labels."""
    return _grouped(how, metric, by, series(metric, **match))


def rate(metric: Metric, *by: str, suffix: str = "", window: str = WINDOW, **match: str) -> str:
    """A counter's growth per second, by labels. suffix: of a histogram's series, `_sum` or `_count`."""
    return _grouped("sum", metric, by, f"rate({series(metric, suffix, **match)}[{window}])")


def quantile(share: float, metric: Metric, *by: str, window: str = WINDOW, **match: str) -> str:
    """A histogram's quantile, by labels. share: 0 to 1, e.g. 0.95."""
    _check(metric, *by)
    counts = f"rate({series(metric, '_bucket', **match)}[{window}])"
    return f"histogram_quantile({share:g}, sum by ({', '.join((*SCOPE, *by, 'le'))}) ({counts}))"


def buckets(metric: Metric, window: str = WINDOW) -> str:
    """A histogram's counts per second by bucket, for a heatmap."""
    return f"sum by (le) (rate({series(metric, '_bucket')}[{window}]))"


def mean(metric: Metric, *by: str) -> str:
    """A histogram's mean, by labels."""
    return f"{rate(metric, *by, suffix='_sum')} / {rate(metric, *by, suffix='_count')}"


def used(free: Metric, there: Metric, *by: str) -> str:
    """The share of a total that is in use, 0 to 1, by labels. free, there: gauges of the free part and the total."""
    return f"1 - {total(free, *by)} / {total(there, *by)}"


def shares(metric: Metric, of: str, *by: str) -> str:
    """The share, 0 to 1, that each value of the label `of` has in a counter's growth, by labels."""
    return f"{rate(metric, *by, of)} / ignoring ({of}) group_left () {rate(metric, *by)}"


def _grouped(how: str, metric: Metric, by: tuple[str, ...], inner: str) -> str:
    _check(metric, *by)
    return f"{how} by ({', '.join((*SCOPE, *by))}) ({inner})"


def _check(metric: Metric, *labels: str) -> None:
    for label in labels:
        if label not in metric.labels:
            raise ValueError(f"{metric.name} has the labels {metric.labels}, not {label}")
