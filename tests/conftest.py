"""What every test needs: one thread a process, because cores are few and tests many; and a layer."""

import os
from pathlib import Path

import pytest

# Before anything imports torch, here and in what tests start.
os.environ["OMP_NUM_THREADS"] = "1"
# Triton decides when a kernel is defined, which any test's imports may bring about.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

LAYERS = {"unit", "process", "cluster", "recipe"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test without a layer of its own is of its folder's, which is `unit` unless FOLDERS says otherwise."""
    for item in items:
        if not LAYERS & {mark.name for mark in item.iter_markers()}:
            item.add_marker(FOLDERS.get(item.path.relative_to(Path(__file__).parent).parts[0], "unit"))


# Deployment recipes need programs of others; kernels run under Triton's interpreter, integration computes models.
FOLDERS = {"deploy": "recipe", "kernels": "process", "integration": "process", "benchmarks": "process"}
