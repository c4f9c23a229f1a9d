"""Compiles kernels for cards that are not here: `python -m tests.kernels.compile [--card 90] [test module …]`.

A test module that defines `on_card(card)` has its kernels compiled for the shapes that function launches. It calls
operations' Triton forms on tensors of the meta device, so real shapes cost no memory; nothing is run. `--matrix`
compiles everything for every card and prints what each kernel takes on it as a table in Markdown.
"""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kernels import device
from kernels.device import H200, Device

HERE = Path(__file__).parent
# By compute capability a card that has it. What a block may use of shared memory: CUDA's programming guide.
CARDS = {
    80: Device("A100", (8, 0), 163 * 1024, 108),
    89: Device("L40S", (8, 9), 99 * 1024, 142),
    90: H200,
    100: Device("B200", (10, 0), 227 * 1024, 148),
    120: Device("RTX PRO 6000", (12, 0), 99 * 1024, 188),
}
# What touches memory that other kernels may write.
_GLOBAL = re.compile(r"\b(ld|st|atom|red)\.(\w+\.)*global|\bcp\.async\.c")


@dataclass(frozen=True)
class Compiled:
    """One compiled kernel. shared: bytes a block; registers: a thread; stack: bytes a thread spilled or indexed.

    floats: its first tensor is fp32.
    barriers: places in its code where all warps wait for each other. early: it is launched to overlap its predecessor,
    and touches memory before it waits for that.
    """

    kernel: str
    floats: bool
    warps: int
    shared: int
    registers: int
    stack: int
    barriers: int
    early: bool


def modules() -> list[str]:
    """The test modules that define `on_card`."""
    files = sorted(HERE.glob("test_triton_*.py"))
    return [f"{__package__}.{f.stem}" for f in files if "\ndef on_card(" in f.read_text()]


def compile_all(names: list[str], card: int) -> dict[str, list[Compiled] | str]:
    """The compiled kernels of each module, or the error; from a process in which Triton is not interpreted."""
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "LING_KERNELS", "LING_PDL")}
    if card >= 90:
        # What it adds to kernels only orders them.
        environment["LING_PDL"] = "1"
    command = [sys.executable, "-W", "ignore", "-m", "tests.kernels.compile", "--json", "--card", str(card), *names]
    done = subprocess.run(
        command, env=environment, cwd=HERE.parent.parent, capture_output=True, text=True, timeout=3600, check=False
    )
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {n: r if isinstance(r, str) else [Compiled(**k) for k in r] for n, r in results.items()}


def _usage(compiled: Any) -> tuple[int, int]:
    """Registers and stack bytes per thread, read from the machine code."""
    import triton  # noqa: PLC0415

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True, timeout=60)
    found = re.search(r"REG:(\d+) STACK:(\d+)", said.stdout)
    assert found is not None, said.stdout
    return int(found[1]), int(found[2])


def _early(compiled: Any) -> bool:
    if not compiled.metadata.launch_pdl:
        return False
    before, waits, _ = compiled.asm["ptx"].partition("griddepcontrol.wait")
    return not waits or _GLOBAL.search(before) is not None


def _compile(name: str, card: int) -> list[Compiled]:
    import triton  # noqa: PLC0415
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415
    from triton.runtime.jit import JITFunction  # noqa: PLC0415

    class Absent:
        """A fake driver of a GPU that this machine does not have."""

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", card, 32)

        def __getattr__(self, attribute: str) -> Any:
            raise AttributeError(f"{attribute}: this needs a GPU, which kernels are compiled without")

    triton.runtime.driver.set_active(Absent())
    # As in ranks, which tell their leader: Triton puts what it compiles into words then.
    triton.knobs.runtime.jit_cache_hook = lambda *_, **__: None
    seen: dict[str, Any] = {}
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        seen[compiled.hash] = compiled
        return compiled

    JITFunction.run = compile_only
    try:
        device.assumed = CARDS[card]
        importlib.import_module(name).on_card(CARDS[card])
    finally:
        device.assumed = None
        JITFunction.run = run
    return [_compiled(c) for c in seen.values()]


def _compiled(c: Any) -> Compiled:
    known, ptx = c.metadata, c.asm["ptx"]
    first = next((kind for kind in c.src.signature.values() if kind.startswith("*")), "")
    return Compiled(
        known.name, first == "*fp32", known.num_warps, known.shared, *_usage(c), ptx.count("bar.sync"), _early(c)
    )


def matrix() -> str:
    """The largest variant of each kernel on each card, as a Markdown table; fp32 variants have rows of their own."""
    found: dict[str, dict[int, str]] = {}
    for card, known in CARDS.items():
        by_kernel: dict[str, list[Compiled]] = {}
        for name, kernels in compile_all(modules(), card).items():
            if isinstance(kernels, str):
                raise RuntimeError(f"{name} on {known.name}: {kernels}")
            for kernel in kernels:
                by_kernel.setdefault(kernel.kernel.strip("_").removesuffix("_kernel"), []).append(kernel)
        for kernel_name in [name for name, variants in by_kernel.items() if len({v.floats for v in variants}) == 2]:
            variants = by_kernel.pop(kernel_name)
            by_kernel[kernel_name] = [v for v in variants if not v.floats]
            by_kernel[f"{kernel_name}, fp32"] = [v for v in variants if v.floats]
        for kernel_name, variants in by_kernel.items():
            shared, registers, stack = (
                max(getattr(v, field) for v in variants) for field in ("shared", "registers", "stack")
            )
            found.setdefault(kernel_name, {})[card] = f"{shared / 1024:.1f} · {registers} · {stack}"
    lines = ["| kernel | " + " | ".join(f"{c.name}, sm_{n}, {c.shared // 1024} KB" for n, c in CARDS.items()) + " |"]
    lines.append("|---" * (len(CARDS) + 1) + "|")
    lines += [f"| {name} | " + " | ".join(row.get(n, "–") for n in CARDS) + " |" for name, row in sorted(found.items())]
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Compile kernels and print what each takes, as a table or, with --json, in one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--card", type=int, choices=tuple(CARDS), default=90)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--matrix", action="store_true")
    asked = parser.parse_args(arguments)
    if asked.matrix:
        print(matrix())
        return
    results: dict[str, list[dict[str, Any]] | str] = {}
    for name in asked.names or modules():
        try:
            results[name] = [asdict(c) for c in _compile(name, asked.card)]
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
    if asked.json:
        print(json.dumps(results))
        return
    for name, found in results.items():
        print(name)
        for row in [found] if isinstance(found, str) else found:
            print("   ", row if isinstance(row, str) else "  ".join(f"{k} {v}" for k, v in row.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
