"""Tests the tables of tuned configurations and the search that fills them."""

from pathlib import Path

import pytest

from benchmarks.tune import best, seen, write_table
from kernels import tuning
from kernels.tuning import Config, Key, config, nearest, read_table, table_path

DEFAULT = {"BLOCK": 64, "num_warps": 4}


def test_a_table_reads_as_written(tmp_path: Path) -> None:
    table = {"norm": {(1, 4096): {"num_warps": 8}, (64, 4096): {"num_warps": 4, "BLOCK": 2}}, "rope": {(3,): {"A": 1}}}
    path = tmp_path / "tuned" / "card.toml"
    write_table(path, table)
    assert read_table(path) == table
    assert read_table(tmp_path / "none.toml") == {}
    assert table_path("NVIDIA H200").name == "nvidia-h200.toml"


@pytest.mark.parametrize(
    ("key", "expected"), [((1, 64), "a"), ((0, 64), "a"), ((100, 64), "b"), ((9, 9000), "c"), ((8, 64), "a")]
)
def test_the_table_s_nearest_key_by_ratio_is_used(key: Key, expected: str) -> None:
    entries: dict[Key, Config] = {
        (1, 64): {"a": 1}, (64, 64): {"b": 1}, (8, 8192): {"c": 1}, (8,): {"other length": 1}
    }  # fmt: skip
    found = nearest(entries, key)
    assert found is not None
    assert list(found) == [expected]


def test_an_operation_missing_in_the_table_uses_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    tuning._tuned.cache_clear()
    monkeypatch.setattr(tuning, "_table", lambda: {"op": {(4,): {"BLOCK": 128}}})
    assert config("op", (5,), DEFAULT) == {"BLOCK": 128, "num_warps": 4}
    assert config("other", (5,), DEFAULT) == DEFAULT
    tuning._tuned.cache_clear()


def test_the_search_finds_the_fastest_configuration_and_survives_failing_ones() -> None:
    used: list[Config] = []

    def call() -> None:
        used.append(config("op", (7,), DEFAULT))
        config("inner", (1,), {"X": 1})
        if used[-1]["BLOCK"] > 256:
            raise RuntimeError("out of resource: shared memory")

    assert seen(call) == [("op", (7,), DEFAULT), ("inner", (1,), {"X": 1})]

    def timer() -> float:
        call()
        return 1000.0 / used[-1]["BLOCK"] + abs(used[-1]["num_warps"] - 2)

    assert best(timer, "op", (7,), DEFAULT) == {"BLOCK": 256, "num_warps": 2}
    assert tuning.trial is None
