"""Parses the Terraform modules."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hcl2
import pytest

from tests.deploy.chart import CHART

ROOT = CHART.parent / "terraform"
FOLDERS = sorted({path.parent for path in ROOT.rglob("*.tf")})
EXAMPLES = [folder for folder in FOLDERS if folder.parent.name == "examples"]
TERRAFORM = shutil.which("terraform")
needs_terraform = pytest.mark.skipif(TERRAFORM is None, reason="terraform is not installed")

Body = dict[str, Any]
_HEADS = r"var|local|module|data|ephemeral|(?:aws|google|helm|kubernetes|random)_\w+"
_REFERENCE = re.compile(rf"(?<![\w.$/\"-])({_HEADS})((?:\.[A-Za-z_][\w-]*|\[[^]\[]*\])+)")


@dataclass(frozen=True)
class Module:
    """A folder of .tf files. blocks: (kind, labels, body), all of them, in no order that matters."""

    folder: Path
    blocks: tuple[tuple[str, tuple[str, ...], Body], ...]

    def of(self, kind: str) -> dict[str, Body]:
        """The bodies of a kind of block, by their labels joined with dots, e.g. aws_vpc.this for a resource."""
        return {".".join(labels): body for name, labels, body in self.blocks if name == kind}

    @property
    def local_names(self) -> set[str]:
        return {key for kind, _, body in self.blocks if kind == "locals" for key in body}

    @property
    def references(self) -> set[tuple[str, ...]]:
        """All references in an expression, e.g. (var, name), (module, name, output) or (aws_vpc, this)."""
        found = set()
        for _, _, body in self.blocks:
            for text in texts(body):
                for head, tail in _REFERENCE.findall(text):
                    found.add((head, *re.findall(r"\.([A-Za-z_][\w-]*)", tail)))
        return found


def plain(value: Any) -> Any:
    """A value of hcl2 without the quotes of strings and hcl2's own marks."""
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items() if k not in {"__is_block__", "__comments__"}}
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] == '"':
        return value[1:-1]
    return value


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from texts(key)
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, str):
        # Prose is no expression, and neither is the text around what a string interpolates.
        inner = re.findall(r"\$\{(.*?)\}(?=[^}]|$)", value) if not value.startswith("${") else [value[2:]]
        yield from inner


def unfold(kind: str, depth: int, labels: tuple[str, ...], body: Body) -> Iterator[tuple[str, tuple[str, ...], Body]]:
    if depth == 0:
        yield kind, labels, body
        return
    for label, inner in body.items():
        yield from unfold(kind, depth - 1, (*labels, label), inner)


@cache
def module(folder: Path) -> Module:
    labels = {"resource": 2, "data": 2, "ephemeral": 2, "variable": 1, "output": 1, "module": 1, "provider": 1}
    blocks: list[tuple[str, tuple[str, ...], Body]] = []
    for path in sorted(folder.glob("*.tf")):
        for kind, bodies in plain(hcl2.loads(path.read_text())).items():
            for body in bodies:
                blocks += unfold(kind, labels.get(kind, 0), (), body)
    return Module(folder, tuple(blocks))


def called(folder: Path, call: Body) -> Module:
    return module((folder / call["source"]).resolve())


def name_of(folder: Path) -> str:
    return f"{folder.parent.name}-{folder.name}"
