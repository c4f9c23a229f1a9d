"""Compiles kernels for sm_90 without a GPU: `python -m tests.kernels.compile [test module …]`.

A test module that defines `on_sm90()` has its kernels compiled for the shapes that function launches. It calls
operations' Triton forms on tensors of the meta device, so real shapes cost no memory; nothing is run.
"""

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

HERE = Path(__file__).parent
# What one block may use on sm_90.
MOST_SHARED = 227 * 1024
# What touches memory that other kernels may write.
_GLOBAL = re.compile(r"\b(ld|st|atom|red)\.(\w+\.)*global|\bcp\.async\.c")


@dataclass(frozen=True)
class Compiled:
    """One compiled kernel. shared: bytes a block; registers: a thread; stack: bytes a thread spilled or indexed.

    early: it is launched to overlap its predecessor, and touches memory before it waits for that.
    """

    kernel: str
    warps: int
    shared: int
    registers: int
    stack: int
    early: bool


def modules() -> list[str]:
    """Test modules that say what to compile."""
    files = sorted(HERE.glob("test_triton_*.py"))
    return [f"{__package__}.{f.stem}" for f in files if "\ndef on_sm90(" in f.read_text()]


def compile_all(names: list[str]) -> dict[str, list[Compiled] | str]:
    """By module what was compiled, or the error; in a process of its own, where triton is not interpreted."""
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "LING_KERNELS")}
    # What it adds to kernels only orders them.
    environment["LING_PDL"] = "1"
    command = [sys.executable, "-W", "ignore", "-m", __name__, "--json", *names]
    done = subprocess.run(
        command, env=environment, cwd=HERE.parent.parent, capture_output=True, text=True, timeout=880, check=False
    )
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {n: r if isinstance(r, str) else [Compiled(**k) for k in r] for n, r in results.items()}


def _usage(compiled: Any) -> tuple[int, int]:
    """Registers and stack of a thread, from the machine code."""
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


def _compile(name: str) -> list[Compiled]:
    import triton  # noqa: PLC0415
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415
    from triton.runtime.jit import JITFunction  # noqa: PLC0415

    class Absent:
        """Stands for the driver of a GPU that isn't here."""

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

        def __getattr__(self, attribute: str) -> Any:
            raise AttributeError(f"{attribute}: this needs a GPU, which kernels are compiled without")

    triton.runtime.driver.set_active(Absent())
    seen: dict[str, Any] = {}
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        seen[compiled.hash] = compiled
        return compiled

    JITFunction.run = compile_only
    try:
        importlib.import_module(name).on_sm90()
    finally:
        JITFunction.run = run
    return [
        Compiled(c.metadata.name, c.metadata.num_warps, c.metadata.shared, *_usage(c), _early(c)) for c in seen.values()
    ]


def main(arguments: list[str]) -> None:
    """Print what each kernel takes, as a table or, after --json, in one line."""
    names = [a for a in arguments if a != "--json"] or modules()
    results: dict[str, list[dict[str, Any]] | str] = {}
    for name in names:
        try:
            results[name] = [asdict(c) for c in _compile(name)]
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
    if "--json" in arguments:
        print(json.dumps(results))
        return
    for name, found in results.items():
        print(name)
        for row in [found] if isinstance(found, str) else found:
            print("   ", row if isinstance(row, str) else "  ".join(f"{k} {v}" for k, v in row.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
