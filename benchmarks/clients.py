"""Runs unmodified clients against a running cluster: `python -m benchmarks.clients URL`.

Each client is run with the lines of docs/CLIENTS.md. One that is not installed is skipped, and the command that
installs it is printed. `--bin FOLDER` is searched before PATH, `--only NAME` runs one client. Agents have long prompts
of their own, so serve with `--max-model-len 200000 --set model_overrides.max_position_embeddings=200000`.

Agents get two tasks. "call": their shell runs a command, and the model gets its result; a relay between agent and
cluster forces the small model to make the call (`benchmarks.client_relay`). "too long": a prompt of more tokens than
the context has; the agent must say in its own words that the context is too small, end by itself, and not repeat the
request again and again.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.client_relay import COMMAND, Notes, relay

_TASK = f"Run the command: {COMMAND}"
# Bytes of the prompt that is too long: about 360,000 of ling-nano's tokens, which agents estimate as 112,000.
_LONG_BYTES = 450_000
# Most requests of an agent with a prompt that is too long: it may shorten the prompt, and ask for the session's name.
_LONG_REQUESTS = 6


@dataclass(frozen=True)
class Client:
    """A client to run.

    program: its executable. install: the command that installs it. command: makes its arguments from the cluster's URL,
    the model's name and the tokenizer's folder. told: a text that a successful run prints. env: environment variables
    and files: files (by path below its working folder), each made from URL and model's name. too_long: a text that an
    agent prints about a prompt that is too long; None for a client that is not an agent. Agents read their task from
    standard input.
    """

    name: str
    program: str
    install: str
    command: Callable[[str, str, str], Sequence[str]]
    told: str = ""
    env: Callable[[str, str], Mapping[str, str]] = lambda url, model: {}
    files: Callable[[str, str], Mapping[str, str]] = field(default=lambda url, model: {})
    too_long: str | None = None


def _codex_home(url: str, model: str) -> Mapping[str, str]:
    config = f"""model = "{model}"
model_provider = "ling"
model_context_window = 200000
model_instructions_file = "instructions.md"
[model_providers.ling]
name = "ling"
base_url = "{url}/v1"
wire_api = "responses"
env_key = "LING_KEY"
"""
    return {".codex/config.toml": config, ".codex/instructions.md": "You run commands and answer."}


def _opencode(url: str, model: str) -> Mapping[str, str]:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{url}/v1", "apiKey": "x"},
        "models": {model: {"limit": {"context": 190_000, "output": 4_000}}},
    }
    name = f"ling/{model}"
    return {"opencode.json": json.dumps({"provider": {"ling": provider}, "model": name, "small_model": name})}


_ROWS = (
    '{"q": "One and one is", "choices": ["two", "six"], "gold": 0}\n'
    '{"q": "Ice is", "choices": ["hot", "cold"], "gold": 1}\n'
)
_DATA = "dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: rows.jsonl\ntest_split: test\n"
_LM_EVAL = {
    "rows.jsonl": _ROWS,
    "tasks/choice.yaml": f"task: ling_choice\n{_DATA}output_type: multiple_choice\ndoc_to_text: '{{{{q}}}}'\n"
    "doc_to_choice: '{{choices}}'\ndoc_to_target: gold\nmetric_list:\n  - metric: acc\n",
    "tasks/until.yaml": f"task: ling_until\n{_DATA}output_type: generate_until\ndoc_to_text: '{{{{q}}}}'\n"
    "doc_to_target: '{{choices[gold]}}'\ngeneration_kwargs:\n  until: ['.']\n  max_gen_toks: 8\n"
    "metric_list:\n  - metric: exact_match\n",
    "tasks/rolling.yaml": f"task: ling_rolling\n{_DATA}output_type: loglikelihood_rolling\ndoc_to_text: ''\n"
    "doc_to_target: '{{q}}'\nmetric_list:\n  - metric: word_perplexity\n",
}

CLIENTS = (
    Client(
        "codex",
        "codex",
        "npm install -g @openai/codex",
        lambda url, model, _: ["exec", "--skip-git-repo-check", "--sandbox", "danger-full-access", "-"],
        "tokens used",
        lambda url, model: {"CODEX_HOME": ".codex", "LING_KEY": "x"},
        _codex_home,
        "ran out of room in the model's context window",
    ),
    Client(
        "claude",
        "claude",
        "npm install -g @anthropic-ai/claude-code",
        lambda url, model, _: [
            "-p",
            "--system-prompt",
            "Be short.",
            "--tools",
            "Bash",
            "--allowedTools",
            "Bash",
        ],
        env=lambda url, model: {
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_AUTH_TOKEN": "x",
            "ANTHROPIC_MODEL": model,
            "ANTHROPIC_SMALL_FAST_MODEL": model,
            "CLAUDE_CODE_MAX_CONTEXT_TOKENS": "200000",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
        too_long="Prompt is too long",
    ),
    Client(
        "qwen",
        "qwen",
        "npm install -g @qwen-code/qwen-code",
        lambda url, model, _: [
            *("--auth-type", "openai", "--yolo", "--system-prompt", "Be short."),
            *("--core-tools", "run_shell_command"),
        ],
        env=lambda url, model: {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "x", "OPENAI_MODEL": model},
        too_long="prompt is too long",
    ),
    Client(
        "opencode",
        "opencode",
        "npm install -g opencode-ai",
        lambda url, model, _: ["run", "--print-logs", "--model", f"ling/{model}"],
        files=_opencode,
        too_long="agent=compaction",
    ),
    Client(
        "guidellm",
        "guidellm",
        "pip install guidellm",
        lambda url, model, tokenizer: [
            *("run", "--backend", f"kind=openai_http,target={url}", "--profile", "kind=concurrent,streams=2"),
            *("--constraint", "kind=max_duration,seconds=8", "--tokenizer", f"kind=hf_auto,model={tokenizer}"),
            *("--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=16"),
        ],
    ),
    Client(
        "lm-eval",
        "lm_eval",
        "pip install 'lm-eval[api]'",
        lambda url, model, _: [
            *("run", "--model", "local-completions", "--tasks", "ling_choice,ling_until,ling_rolling"),
            *("--include_path", "tasks", "--output_path", "out", "--model_args"),
            f"model={model},base_url={url}/v1/completions,tokenizer_backend=remote,num_concurrent=1,max_retries=1",
        ],
        "ling_choice",
        files=lambda url, model: _LM_EVAL,
    ),
    Client(
        "aiperf",
        "aiperf",
        "pip install aiperf",
        lambda url, model, tokenizer: [
            *("profile", "--model", model, "--url", url, "--endpoint-type", "chat", "--streaming"),
            *("--tokenizer", tokenizer, "--concurrency", "2", "--request-count", "4"),
            *("--synthetic-input-tokens-mean", "64", "--output-tokens-mean", "16", "--ui", "none"),
        ],
        "Request Throughput",
    ),
)


def run(client: Client, folder: str, url: str, model: str, tokenizer: str, limit_s: float) -> str:
    """Run a client; returns its outcome in a line. Prints its output if it failed. limit_s: seconds it may take."""
    path = os.pathsep.join(filter(None, (folder, os.environ.get("PATH"))))
    program = shutil.which(client.program, path=path)
    if program is None:
        return f"skipped: not installed; {client.install}"

    def one(at: str, task: str) -> tuple[int, str, float]:
        with tempfile.TemporaryDirectory(prefix="ling-client-") as home:
            command = [program, *client.command(at, model, tokenizer)]
            return _run(
                command, home, client.files(at, model), _environment(client, at, model, home, path), task, limit_s
            )

    try:
        if client.too_long is not None:
            return _agent(client, client.too_long, url, one)
        code, told, seconds = one(url, "")
    except _Late as error:
        return f"FAILED: {error}"
    if code or client.told not in told:
        print(told[-6000:])
        return f"FAILED: exit {code}"
    return f"worked, {seconds:.0f} s"


class _Late(Exception):
    """A client did not end in time."""


def _agent(client: Client, too_long: str, url: str, one: Callable[[str, str], tuple[int, str, float]]) -> str:
    """Give an agent its two tasks, a forced call of its shell and a prompt that is too long; returns its outcome."""
    with relay(url, force=True) as (at, notes):
        code, told, called_s = one(at, _TASK)
    if code or client.told not in told or not notes.returned:
        print(told[-6000:], *notes.exchanges, sep="\n")
        return f"FAILED: call: exit {code}, {notes.forced} forced, the command's result did not come back"
    with relay(url, force=False) as (at, long_notes):
        code, told, long_s = one(at, _too_long())
    if too_long not in told or not _refused_as_too_long(long_notes):
        print(told[-6000:], *long_notes.exchanges, sep="\n")
        return f"FAILED: too long: exit {code}, {len(long_notes.exchanges)} requests"
    asked = len(long_notes.exchanges)
    return f"worked: call, {called_s:.0f} s; too long, {asked} requests, {long_s:.0f} s, {too_long!r}"


def _refused_as_too_long(notes: Notes) -> bool:
    refused = [e for e in notes.refused if "prompt is too long" in e.error]
    return len(refused) > 0 and len(notes.exchanges) <= _LONG_REQUESTS


def _too_long() -> str:
    """A long task of words that all differ, so that no tokenizer or cache makes it short."""
    words = (f"{word}{at}" for at in range(_LONG_BYTES // 6) for word in ("ship", "wind"))
    return "Summarize this.\n" + " ".join(words)[:_LONG_BYTES]


def _environment(client: Client, url: str, model: str, home: str, path: str) -> dict[str, str]:
    env = {**os.environ, "PATH": path, "HOME": home, "PWD": home, "NO_COLOR": "1", **client.env(url, model)}
    if "CODEX_HOME" in env:
        env["CODEX_HOME"] = str(Path(home, env["CODEX_HOME"]))
    return env


def _run(
    command: Sequence[str], home: str, files: Mapping[str, str], env: Mapping[str, str], task: str, limit_s: float
) -> tuple[int, str, float]:
    """Run a command; returns exit code, output and seconds. _Late if it did not end within the limit."""
    for name, text in files.items():
        file = Path(home, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    begun = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=home, env=env, input=task.encode(), capture_output=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        print((error.stdout or b"").decode(errors="replace")[-4000:])
        raise _Late(f"not done in {limit_s:g} s") from None
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace"), time.monotonic() - begun


def main(arguments: Sequence[str]) -> int:
    """Run the chosen clients and print their outcomes; returns 1 if one failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--only", choices=[c.name for c in CLIENTS], action="append")
    parser.add_argument("--bin", default="", help="folders with clients, separated as in PATH")
    parser.add_argument("--tokenizer", default=str(Path(__file__).parents[1] / "checkpoints" / "ling-nano"))
    parser.add_argument("--limit", type=float, default=300.0, help="seconds a client may take")
    asked = parser.parse_args(arguments)
    url = asked.url.rstrip("/")
    model = httpx.get(f"{url}/v1/models").raise_for_status().json()["data"][0]["id"]
    failed = 0
    for client in CLIENTS:
        if not asked.only or client.name in asked.only:
            outcome = run(client, asked.bin, url, model, asked.tokenizer, asked.limit)
            failed += outcome.startswith("FAILED")
            print(f"{client.name}: {outcome}", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
