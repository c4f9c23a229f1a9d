"""Tuned launch configurations as data: one table per GPU in kernels/tuned, written by `benchmarks.tune`."""

import math
import tomllib
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import torch

Config = Mapping[str, int]
Key = tuple[int, ...]

# The tuner's replacement for the table: takes operation, key and default, returns a configuration.
Trial = Callable[[str, Key, Config], Config]
trial: Trial | None = None

TABLES = Path(__file__).parent / "tuned"


def table_path(device_name: str) -> Path:
    """The path of a GPU's table, by the name that its driver reports."""
    return TABLES / f"{device_name.lower().replace(' ', '-')}.toml"


def read_table(path: Path) -> dict[str, dict[Key, dict[str, int]]]:
    """Configurations by operation and shape; none if the file does not exist.

    The file holds for each operation an array of tables: `key` the shape, `config` the configuration.
    """
    if not path.exists():
        return {}
    raw = tomllib.loads(path.read_text())
    return {op: {tuple(entry["key"]): entry["config"] for entry in entries} for op, entries in raw.items()}


@lru_cache(maxsize=1)
def _table() -> dict[str, dict[Key, dict[str, int]]]:
    return read_table(table_path(torch.cuda.get_device_name())) if torch.cuda.is_available() else {}


def nearest(entries: Mapping[Key, Config], key: Key) -> Config | None:
    """The configuration tuned for the shape closest to `key` by the sizes' ratios; None if there is none."""
    near = [k for k in entries if len(k) == len(key)]
    if not near:
        return None
    return entries[min(near, key=lambda k: sum(abs(math.log((a + 1) / (b + 1))) for a, b in zip(k, key, strict=True)))]


@lru_cache(maxsize=4096)
def _tuned(op: str, key: Key) -> Config | None:
    return nearest(_table().get(op, {}), key)


def config(op: str, key: Key, default: Config) -> Config:
    """The tuned configuration of an operation at a shape, laid over `default`, which says what fits untuned.

    key: the sizes that matter, always as many for one operation, the batch's first.
    """
    if trial is not None:
        return trial(op, key, default)
    tuned = _tuned(op, key)
    return default if tuned is None else {**default, **tuned}
