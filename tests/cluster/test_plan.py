"""Tests `ling plan` as a command: tables, JSON, errors, and the comparison with a running cluster."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import TypeAdapter
from typer.testing import CliRunner, Result

from cluster.config import ClusterConfig
from cluster.plan import PlanReport, plan_command

TABLE = Path(__file__).with_name("test_plan_table.txt")
ISSUE = ["--gpu", "h200-141gb", "--gpus-per-worker", "4", "--dtype", "fp8", "--context", "131072", "--sessions", "200"]
SHORT = ["--gpu", "h200-141gb", "--gpus-per-worker", "4", "--dtype", "fp8", "--mean-length", "32768"]
TRAFFIC = ["--requests-per-s", "20", "--prompt-tokens", "8192", "--output-tokens", "512", "--hit-rate", "0.5"]

app = typer.Typer()
app.command("plan")(plan_command)


def run(*args: str) -> Result:
    return CliRunner().invoke(app, list(args), env={"TERMINAL_WIDTH": "150", "NO_COLOR": "1"})


def answer(*args: str) -> PlanReport:
    return TypeAdapter(PlanReport).validate_json(run(*args, "--json").stdout)


def test_table() -> None:
    """Compare the whole output. After an intended change, write the new output to the file and read it."""
    found = run(*ISSUE, "--mean-length", "65536", *TRAFFIC)
    assert found.exit_code == 0
    lines = [line.rstrip() for line in found.stdout.splitlines()]
    assert lines == TABLE.read_text().splitlines()


def test_json_is_the_plan() -> None:
    found = json.loads(run(*ISSUE, *TRAFFIC, "--json").stdout)
    assert set(found) == {"plan", "check"}
    assert found["check"] is None
    plan = found["plan"]
    assert set(plan) == {
        "model", "dtype", "card", "layout", "size", "memory", "capacity", "decode", "prefill", "handoff", "fleet",
        "fits", "words",
    }  # fmt: skip
    assert plan["size"]["main_parameters"] == 104_186_915_584
    assert plan["size"]["active_parameters"] == 7_449_488_128
    assert plan["size"]["state_bytes"] == 58_720_256
    assert plan["size"]["latent_bytes"] == 4_608 + 1_152
    assert plan["layout"]["sessions"] == 200
    assert plan["fits"] is False
    assert plan["capacity"]["binds"] == "pages"
    kinds = dict(plan["memory"])
    assert kinds.pop("card") == sum(kinds.values())
    assert [row["batch"] for row in plan["decode"]] == [1, 8, 32, 128, plan["capacity"]["fits"]]
    assert answer(*ISSUE, *TRAFFIC).plan.fleet is not None


def test_json_where_nothing_fits() -> None:
    plan = answer("--gpu", "rtx-4090-24gb", "--dtype", "int4").plan
    assert (plan.fits, plan.decode, plan.prefill, plan.handoff, plan.fleet) == (False, (), None, None, None)
    assert plan.memory.unused < 0


def test_defaults_are_the_checkpoints() -> None:
    golden = Path(__file__).parents[1] / "golden" / "fp8"
    plan = answer("--model", str(golden), "--gpu", "l40s-48gb").plan
    assert (plan.model, plan.dtype, plan.layout.context, plan.layout.mean_length) == ("fp8", "fp8", 1024, 1024)
    assert plan.fits


def test_states_that_workers_keep_by_default_are_counted() -> None:
    config = ClusterConfig()
    usual = answer(*SHORT, "--sessions", str(config.slots)).plan
    assert usual.capacity.kept_states == config.cache.states(config.slots) > 0
    assert usual.capacity.kept_on_host == config.cache.host_bytes == 0
    off = answer(*SHORT, "--sessions", str(config.slots), "--kept-states", "0").plan
    assert off.capacity.pages > usual.capacity.pages


def test_mtp_is_loaded_unless_asked_not_to() -> None:
    without, with_it = (answer(*ISSUE, *more).plan for more in (["--no-mtp"], []))
    assert "MTP" in without.size.weights
    assert "MTP" not in without.size.weights_per_card
    assert with_it.size.weights_per_card["MTP"] > 0
    assert with_it.size.latent_bytes == 5_760
    assert with_it.memory.weights > without.memory.weights


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "Missing option '--gpu'"),
        (["--gpu", "h200"], "did you mean h200-141gb?"),
        (["--gpus-per-worker", "8"], "--gpus-per-worker: tp 8 does not divide group_norm_size 4"),
        (["--gpus-per-worker", "0"], "'--gpus-per-worker'"),
        (["--dtype", "int5"], "'int5' is not one of 'bf16', 'fp8-channel', 'fp8', 'int4', 'awq'"),
        (["--context", "262145"], "--context: 262145 is more than twice the checkpoint's 131072"),
        (["--context", "1000", "--mean-length", "1001"], "--mean-length: 1001 exceeds --context 1000"),
        (["--context", "1000", "--prompt-tokens", "1001"], "--prompt-tokens: 1001 exceeds --context 1000"),
        (["--sessions", "0"], "'--sessions'"),
        (["--step-tokens", "none"], "'--step-tokens'"),
        (["--network", "0"], "--network: must be above 0 GB/s, got 0.0"),
        (["--network", "nan"], "--network: must be above 0 GB/s, got nan"),
        (["--requests-per-s", "1"], "--requests-per-s: needs --prompt-tokens and --output-tokens"),
        (["--hit-rate", "0.5"], "--hit-rate: says nothing without --requests-per-s"),
        (["--output-tokens", "5"], "--output-tokens: says nothing without --requests-per-s"),
        ([*TRAFFIC, "--hit-rate", "1.5"], "--hit-rate: is a share from 0 to 1, got 1.5"),
        ([*TRAFFIC, "--hit-rate", "nan"], "--hit-rate: is a share from 0 to 1, got nan"),
        ([*TRAFFIC, "--requests-per-s", "inf"], "--requests-per-s: must be above 0, got inf"),
        ([*TRAFFIC, "--context", "8200"], "--output-tokens: prompt and output make 8704, more than --context 8200"),
        (["--host-gb", "1", "--kept-states", "0"], "--host-gb: copies in host memory are made of states kept on"),
        (["--dtype", "int4", "--mtp"], "--mtp: ling-2.6-flash in int4 has no MTP layer to load"),
        (["--model", "/nowhere"], "/nowhere/config.json is missing"),
        (["--check", "nonsense"], "--check: nothing answers at nonsense"),
    ],
)
def test_bad_flags(args: list[str], told: str) -> None:
    gpu = [] if not args or "--gpu" in args else ["--gpu", "h200-141gb"]
    found = run(*gpu, *args)
    assert found.exit_code == 2
    assert found.stdout == ""
    assert told in " ".join(found.stderr.replace("│", " ").split())


@contextmanager
def serving(content: str) -> Iterator[str]:
    """Serve `/status` with this text; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/status"
            self.send_response(200 if known else 404)
            self.end_headers()
            if known:
                self.wfile.write(content.encode())

        def log_message(self, format: str, *args: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def status(**changes: Any) -> str:
    """The status of a cluster as planned for ISSUE, with `changes` of its decode worker."""
    held = answer(*ISSUE).plan.capacity
    worker = {
        "id": "w1",
        "ranks": [{"rank": rank} for rank in range(4)],
        "slots": held.slots,
        "pages": held.pages * 2,
        "page_size": 32,
        "max_model_len": 131_072,
    }
    pools = {
        "prefill": {"configured": 1, "workers": [{"id": "w0", "state": "connecting"}]},
        "decode": {"configured": 1, "workers": [worker | changes]},
    }
    return json.dumps({"pools": pools})


def test_check_agrees() -> None:
    with serving(status()) as url:
        found = run(*ISSUE, "--check", url)
        compared = answer(*ISSUE, "--check", url).check
    assert found.exit_code == 0
    assert compared is not None
    assert [figure.figure for figure in compared] == ["ranks", "slots", "tokens in pages", "longest sequence"]
    assert all(figure.same and figure.worker == "decode w1" for figure in compared)


def test_check_differs() -> None:
    with serving(status(slots=64, pages=1_000, ranks=[{"rank": 0}])) as url:
        found = run(*ISSUE, "--check", f"{url}/")
    assert found.exit_code == 1
    lines = [line.split() for line in found.stdout.splitlines() if line.strip().startswith("decode w1")]
    assert lines[0][2:] == ["ranks", "4", "1", "-75%"]
    assert lines[1][2:] == ["slots", "200", "64", "-68%"]
    assert lines[2][-1] == "-100%"
    assert lines[3][2:] == ["longest", "sequence", "131,072", "131,072"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("not json", "/status is no cluster"),
        ("[]", "/status is no cluster"),
        ('{"a": 1}', "--check: what answers at"),
        ('{"pools": {"decode": {"workers": []}}}', "no worker of the cluster runs yet"),
        ('{"pools": {"decode": {"workers": [{"id": "w", "ranks": []}]}}}', "of another version: KeyError"),
    ],
)
def test_check_of_something_else(content: str, told: str) -> None:
    with serving(content) as url:
        found = run(*ISSUE, "--check", url)
    assert found.exit_code == 2
    assert told in " ".join(found.stderr.replace("│", " ").split())


def test_the_command_reads_no_weights_and_no_torch() -> None:
    """Planning needs neither; importing them would make `ling plan` slow and GPU machines necessary."""
    sources = (Path(__file__).parents[2] / "planner").glob("*.py")
    imports = {line.split()[1].split(".")[0] for path in sources for line in path.read_text().splitlines()
               if line.startswith(("import ", "from "))}  # fmt: skip
    assert imports.isdisjoint({"torch", "ray", "safetensors"})
