"""Settings for all tests: one thread per process, because there are few cores, and each test's layer."""

import os
from pathlib import Path

import pytest

# Before anything imports torch, here and in what tests start.
os.environ["OMP_NUM_THREADS"] = "1"
# Triton decides when a kernel is defined, which any test's imports may bring about.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

LAYERS = {"unit", "process", "cluster", "recipe"}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m unit`, folders without a unit test are not even imported."""
    return True if config.option.markexpr == "unit" and collection_path.name in FOLDERS else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each test without a layer's marker its folder's layer: `unit`, unless FOLDERS names another one."""
    for item in items:
        if not LAYERS & {mark.name for mark in item.iter_markers()}:
            item.add_marker(FOLDERS.get(item.path.relative_to(Path(__file__).parent).parts[0], "unit"))
    if hasattr(config, "workerinput"):
        items[:] = _in_turns(items)


def _in_turns(items: list[pytest.Item]) -> list[pytest.Item]:
    """For processes that take one file after another: files that wait for a cluster spread among those that compute.

    The unit layer comes last: its files are short, so the processes end together.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    kinds: tuple[list[Path], ...] = ([], [], [])
    for path, tests in files.items():
        layers = {mark.name for item in tests for mark in item.iter_markers()}
        kinds[0 if "cluster" in layers else 1 if layers & {"process", "recipe"} else 2].append(path)
    waiting, computing, short = kinds
    placed = [((at + 0.5) / len(paths), path) for paths in (waiting, computing) for at, path in enumerate(paths)]
    return [item for path in (*(path for _, path in sorted(placed)), *short) for item in files[path]]


# Deployment recipes need programs of others; kernels run under Triton's interpreter, integration computes models.
FOLDERS = {"deploy": "recipe", "kernels": "process", "integration": "process", "benchmarks": "process"}
