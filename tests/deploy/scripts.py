"""Loads the programs of `.ci` as modules."""

from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]


def load(name: str) -> Any:
    """Load a program's definitions without running it."""
    script = ROOT / ".ci" / name
    module: Any = ModuleType(name)
    module.__file__ = str(script)
    exec(compile(script.read_text(), str(script), "exec"), module.__dict__)
    return module
