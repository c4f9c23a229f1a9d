"""Runs all checks that need a GPU in one call: `python3 -m benchmarks.gpu`.

The stages run one after another, each within its own time limit: `tests` (of kernels and graphs), `kernels` (their
benchmark), `decode` (the whole model's benchmark) and `eager` (a little of that without CUDA graphs). After each stage
it writes <device>-<commit>.json and .md. It needs Python with torch and triton; `--wheels FOLDER` provides the other
packages that workers import (msgspec, llguidance). `--stages` selects stages; `tune` and `overlap` (batch 1 with
LING_PDL=1) run only when named. `--limit STAGE=SECONDS` changes a limit; the defaults add up to ten minutes. `--tiny`
runs a little of each stage on any machine.
"""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.decode_report import markdown as tables

ROOT = Path(__file__).parent.parent
LIMITS = {"tests": 120.0, "kernels": 150.0, "decode": 250.0, "eager": 60.0, "overlap": 60.0, "tune": 560.0}
STAGES = ("tests", "kernels", "decode", "eager")
# Last seconds of a stage's limit, in which the model's benchmark begins no new measurement.
_ENDING = 40.0
_TAIL = 15
_IDENTIFY = (
    "import json, platform, torch, triton; gpu = torch.cuda.is_available();"
    "print(json.dumps({'device': torch.cuda.get_device_name() if gpu else 'cpu', 'torch': torch.__version__,"
    "'triton': triton.__version__, 'python': platform.python_version()}))"
)


@dataclass(frozen=True)
class Ran:
    """A stage that ran. code: its exit code; None if it was ended at its limit. output: all that it printed."""

    command: list[str]
    code: int | None
    seconds: float
    output: str


def commands(stage: str, out: Path, limit: float, tiny: bool) -> list[str]:
    """The arguments of a stage's command, after the interpreter. limit: its seconds. tiny: run only a little."""
    match stage:
        case "tests":
            workers = [f"tests/workers/test_{name}.py" for name in ("graphs", "feeding", "waits", "upload")]
            chosen = ["tests/kernels/test_triton_norm.py"] if tiny else ["tests/kernels", *workers]
            spread = ["-n", "6"] if importlib.util.find_spec("xdist") and not tiny else []
            return ["-m", "pytest", *chosen, "-q", "-p", "no:cacheprovider", *spread]
        case "kernels":
            return ["-m", "benchmarks.kernels", *(["--check", "--only", "SwiGLU"] if tiny else [])]
        case "decode" | "eager" | "overlap":
            model = ["--config", "ling-2.6-flash", "--dtype", "fp8", "--load", "synthetic"]
            if tiny:
                small = ["--batch", "1", "2", "--context", "20", "--prefill", "20", "--steps", "2", "--device", "cpu"]
                model = ["--config", "tests/golden/base", *small]
            if stage != "decode":
                model += ["--context", "20" if tiny else "1024", "--batch", "1"]
            if stage == "eager":
                model += ["--graphs", "off"]
            spare = max(limit - _ENDING, limit / 2)
            return ["-m", "benchmarks.decode", *model, "--seconds", str(spare), "--json", str(out / f"{stage}.json")]
        case _:
            return ["-m", "benchmarks.tune"]


def run(arguments: list[str], limit: float, log: Path, environment: dict[str, str]) -> Ran:
    """Run Python with these arguments, end it and its children after `limit` seconds, and write its output to `log`."""
    begun = time.monotonic()
    command = [sys.executable, *arguments]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    return Ran(["python3", *arguments], code, time.monotonic() - begun, log.read_text(errors="replace"))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all its children, even if it has already ended."""
    for sign, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 30.0)):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def commit() -> str:
    """The checkout's commit, with "-changed" if files differ from it; "unknown" without git."""
    try:
        name = _said(["git", "rev-parse", "--short", "HEAD"])
        return name + ("-changed" if _said(["git", "status", "--porcelain", "--untracked-files=no"]) else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _said(command: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.strip()


def markdown(results: dict[str, Any]) -> str:
    """The results as a page in Markdown."""
    machine = results["machine"]
    lines = [f"# {machine['device']}, commit {results['commit']}", ""]
    lines += [", ".join(f"{name} {value}" for name, value in machine.items() if name != "device") + ".", ""]
    for name, stage in results["stages"].items():
        ended = "ended at its limit" if stage["code"] is None else f"exit code {stage['code']}"
        lines += [f"## {name}", "", f"`{' '.join(stage['command'])}`: {ended}, {stage['seconds']:.0f} s.", ""]
        if name in results["models"]:
            lines += [*tables(results["models"][name]), ""]
        if name not in results["models"] or stage["code"] != 0:
            shown = stage["output"].splitlines()
            shown = shown if name == "kernels" else shown[-_TAIL:]
            lines += ["```", *shown, "```", ""]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run the stages; returns 0 if all of them succeeded, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=tuple(LIMITS), default=list(STAGES))
    parser.add_argument("--limit", action="append", default=[], metavar="STAGE=SECONDS")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to import from")
    parser.add_argument("--commit", help="what to call the code, where there is no git")
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args(arguments)
    limits = dict(LIMITS)
    for given in asked.limit:
        stage, _, seconds = given.partition("=")
        if stage not in LIMITS or not seconds.replace(".", "", 1).isdigit():
            parser.error(f"--limit {given}: must be one of {', '.join(LIMITS)}, then = and seconds")
        limits[stage] = float(seconds)

    out: Path = asked.out.resolve()
    logs = out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as unpacked:
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        if asked.wheels is not None:
            for wheel in sorted(asked.wheels.glob("*.whl")):
                zipfile.ZipFile(wheel).extractall(unpacked)
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, (unpacked, os.environ.get("PYTHONPATH"))))
        machine = json.loads(_said([sys.executable, "-c", _IDENTIFY], environment).splitlines()[-1])
        if machine["device"] == "cpu" and not asked.tiny:
            sys.exit("benchmarks.gpu finds no CUDA device; --tiny runs a little of each stage without one")
        results: dict[str, Any] = {"machine": machine, "commit": asked.commit or commit(), "stages": {}, "models": {}}
        name = f"{machine['device'].lower().replace(' ', '-')}-{results['commit']}"
        for stage in asked.stages:
            print(f"{stage}: up to {limits[stage]:.0f} s", flush=True)
            report = out / f"{stage}.json"
            report.unlink(missing_ok=True)
            arguments = commands(stage, out, limits[stage], asked.tiny)
            overlap = {"LING_PDL": "1"} if stage == "overlap" else {}
            ran = run(arguments, limits[stage], logs / f"{stage}.log", environment | overlap)
            results["stages"][stage] = asdict(ran)
            if report.exists():
                results["models"][stage] = json.loads(report.read_text())
                report.unlink()
            if stage == "tune":
                results["tuned"] = {f.name: f.read_text() for f in sorted((ROOT / "kernels/tuned").glob("*.toml"))}
            (out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
            (out / f"{name}.md").write_text(markdown(results))
            print("\n".join(ran.output.splitlines()[-_TAIL:]), flush=True)
    print((out / f"{name}.md").read_text())
    return int(any(stage["code"] != 0 for stage in results["stages"].values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
