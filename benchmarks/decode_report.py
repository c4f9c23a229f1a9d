"""The results of `benchmarks.decode`, as data and as tables in Markdown."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Decoded:
    """Measured decode steps of `batch` sequences, which have `context` tokens each after the last step.

    step_ms: the median time of a step. read_first_ms: the same of steps that start once the tokens before are read.
    expected_ms: the limit divided by the share of it that kernels are built to reach, and the time of the counted
    launches. limit_ms: the shortest possible time. fraction: limit over measured time. The last three are None where no
    limit is known, as on a CPU.
    """

    batch: int
    context: int
    steps: int
    step_ms: float
    slowest_ms: float
    read_first_ms: float
    tokens_per_s: float
    expected_ms: float | None
    limit_ms: float | None
    fraction: float | None


@dataclass(frozen=True)
class Prefilled:
    """A measured prompt that one step computes. step_ms: the median time. limit_ms, fraction: as in `Decoded`."""

    tokens: int
    step_ms: float
    tokens_per_s: float
    limit_ms: float | None
    fraction: float | None


@dataclass(frozen=True)
class Split:
    """Milliseconds of a decode step by part, each measured alone. rest_ms: the step's time without all parts."""

    batch: int
    context: int
    parts_ms: dict[str, float]
    rest_ms: float


@dataclass
class Report:
    """All results. loaded: seconds and bytes of loading. skipped: what was not measured, and why."""

    machine: dict[str, str]
    model: dict[str, Any]
    ceilings: dict[str, Any] | None
    loaded: dict[str, float] = field(default_factory=dict)
    decoded: list[Decoded] = field(default_factory=list)
    prefilled: list[Prefilled] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def markdown(report: dict[str, Any]) -> list[str]:
    """The lines of a report in Markdown. report: a `Report` as a dict or as read from its JSON."""

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    model, loaded = report["model"], report["loaded"]
    lines = [f"{model['config']}, {model['weights']} weights ({model['load']}), CUDA graphs {model['graphs']}.", ""]
    if loaded:
        lines += [", ".join(f"{name} {value:,.1f}" for name, value in loaded.items()) + " to load.", ""]
    if report["decoded"]:
        lines += [
            "| batch | context | tokens/s | ms a step | slowest | read first "
            "| expected, ms | limit, ms | of the limit |",
            "|---" * 9 + "|",
        ]
        lines += [
            f"| {d['batch']} | {d['context']} | {d['tokens_per_s']:.1f} | {d['step_ms']:.3f} | {d['slowest_ms']:.3f} "
            f"| {d['read_first_ms']:.3f} "
            f"| {number(d['expected_ms'], '.3f')} | {number(d['limit_ms'], '.3f')} | {number(d['fraction'], '.0%')} |"
            for d in report["decoded"]
        ] + [""]
    if report["prefilled"]:
        lines += ["| prompt | tokens/s | ms | limit, ms | of the limit |", "|---|---|---|---|---|"]
        lines += [
            f"| {p['tokens']} | {p['tokens_per_s']:.0f} | {p['step_ms']:.1f} "
            f"| {number(p['limit_ms'], '.1f')} | {number(p['fraction'], '.0%')} |"
            for p in report["prefilled"]
        ] + [""]
    if report["splits"]:
        names = list(report["splits"][0]["parts_ms"])
        lines += [f"| batch | context | {' | '.join(names)} | rest |", "|---" * (len(names) + 3) + "|"]
        for split in report["splits"]:
            cells = [f"{split['parts_ms'][name]:.3f}" for name in names] + [f"{split['rest_ms']:.3f}"]
            lines.append(f"| {split['batch']} | {split['context']} | {' | '.join(cells)} |")
        lines += ["", "Parts in ms, each alone.", ""]
    return lines + [f"- left out: {line}" for line in report["skipped"]]
