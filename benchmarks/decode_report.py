"""What `benchmarks.decode` found, as data and as tables."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Decoded:
    """Steps of `batch` sequences that end with `context` tokens each. Times are medians; None: no limit is known.

    read_first_ms: of steps that are launched once the tokens before are read.
    expected_ms: what the limit at the share kernels are built to reach and the counted launches make.
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
    """One prompt in one step."""

    tokens: int
    step_ms: float
    tokens_per_s: float
    limit_ms: float | None
    fraction: float | None


@dataclass(frozen=True)
class Split:
    """Milliseconds of a decode step by part; `rest`: what the parts leave of the step."""

    batch: int
    context: int
    parts_ms: dict[str, float]
    rest_ms: float


@dataclass
class Report:
    """All that was measured, and what was not and why. Written after every measurement, if there is a file for it."""

    machine: dict[str, str]
    model: dict[str, Any]
    ceilings: dict[str, Any] | None
    loaded: dict[str, float] = field(default_factory=dict)
    decoded: list[Decoded] = field(default_factory=list)
    prefilled: list[Prefilled] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def markdown(report: dict[str, Any]) -> list[str]:
    """The tables of a report, as its JSON has it."""

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
