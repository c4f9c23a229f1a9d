"""The table of cards, with memory and speed of each. cards.toml holds the figures and their sources."""

import difflib
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from planner.errors import PlanError


@dataclass(frozen=True, slots=True)
class Card:
    """One kind of GPU. Sizes in bytes, rates in bytes/s and FLOP/s, times in seconds.

    bandwidth, bf16_flops, fp8_flops, link_bandwidth: the rates that software reaches, measured or taken as an assumed
    share of the datasheet's. fp8: whether it computes with 8-bit floats; if not, fp8_flops equals bf16_flops. link: the
    name of the connection between cards of a host; link_bandwidth is for one direction. source: where the figures come
    from.
    """

    name: str
    memory: int
    datasheet_bandwidth: float
    bandwidth: float
    bandwidth_measured: bool
    datasheet_bf16_flops: float
    bf16_flops: float
    fp8: bool
    fp8_flops: float
    flops_measured: bool
    link: str
    link_bandwidth: float
    link_latency: float
    source: str


@lru_cache(maxsize=1)
def cards() -> dict[str, Card]:
    """All cards by name, those with the least memory first."""
    table = tomllib.loads(files(__package__).joinpath("cards.toml").read_text())
    found = [_card(name, row, table["links"][row["link"]], table["assumed"]) for name, row in table["cards"].items()]
    return {card.name: card for card in sorted(found, key=lambda card: (card.memory, card.name))}


def find_card(name: str) -> Card:
    """The card with this name; PlanError suggests a similar name, or lists all."""
    known = cards()
    if card := known.get(name.lower()):
        return card
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise PlanError(f"--gpu: unknown card {name!r}; {hint}known: {', '.join(known)}")


def serves(card: Card, weights: str) -> bool:
    """Whether the card can run the kernels for weights of this format."""
    return card.fp8 or not weights.startswith("fp8")


def _card(name: str, row: dict[str, object], link: dict[str, float], assumed: dict[str, float]) -> Card:
    def number(key: str) -> float | None:
        value = row.get(key)
        return float(value) if isinstance(value, int | float) else None

    def given(key: str) -> float:
        value = number(key)
        if value is None:
            raise ValueError(f"cards.toml: {name} has no number {key}")
        return value

    bf16 = given("bf16") * 1e12
    measured_bf16, measured_bandwidth = number("measured_bf16"), number("measured_gb_s")
    achieved = measured_bf16 * 1e12 if measured_bf16 else bf16 * assumed["flops"]
    # FP8 units reach about the same share of their peak as BF16 units.
    fp8 = (number("fp8") or given("bf16")) * 1e12 * achieved / bf16
    bandwidth = given("bandwidth_gb_s") * 1e9
    return Card(
        name=name,
        memory=int(given("memory_mib")) << 20,
        datasheet_bandwidth=bandwidth,
        bandwidth=measured_bandwidth * 1e9 if measured_bandwidth else bandwidth * assumed["bandwidth"],
        bandwidth_measured=measured_bandwidth is not None,
        datasheet_bf16_flops=bf16,
        bf16_flops=achieved,
        fp8=number("fp8") is not None,
        fp8_flops=fp8,
        flops_measured=measured_bf16 is not None,
        link=str(row["link"]),
        link_bandwidth=given("link_gb_s") * 1e9 * link["share"],
        link_latency=link["latency_us"] * 1e-6,
        source=str(row["source"]),
    )
