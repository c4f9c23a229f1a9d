"""Tests files of sessions and failed requests with their states, between clusters with different tp."""

import asyncio
import dataclasses
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from router.app import Pools
from tests.router.conftest import LoopThread, Stage, served
from tests.workers.harness import process_launcher
from wire.protocol import PeerRef
from wire.snapshot_file import read_head
from workers.config import WorkerConfig
from workers.leader.leader import Leader

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

NANO = Path(__file__).parents[2] / "checkpoints" / "ling-nano"
FORM: Any = {
    "type": "json_schema",
    "json_schema": {"name": "form", "strict": True, "schema": {"type": "object", "additionalProperties": False,
     "required": ["mood", "sure"], "properties": {"mood": {"enum": ["good", "bad"]}, "sure": {"type": "boolean"}}}},
}  # fmt: skip


class RealWorker:
    """A real leader with ranks, which the stage starts and ends like a fake worker."""

    def __init__(self, tp: int, **settings: Any) -> None:
        self.config = WorkerConfig(
            str(NANO), tp=tp, page_size=16, slots=4, max_model_len=1024, cache_states=12, **settings
        )
        self._id = f"d-tp{tp}"

    async def start(self) -> None:
        self.leader = Leader(self.config, self._id, "decode")
        await self.leader.start(process_launcher(self.config, self._id))
        self.info = self.leader.info
        self.ref = PeerRef(self._id, self.info.host, self.info.port)
        self._task = asyncio.create_task(self.leader.run())

    async def die(self) -> None:
        self._task.cancel()
        await self.leader.close()
        await asyncio.gather(self._task, return_exceptions=True)


@contextmanager
def cluster(folder: Path, tp: int, **settings: Any) -> Iterator[tuple[Stage, RealWorker]]:
    worker = RealWorker(tp, **settings)
    thread, opened = LoopThread(), AsyncExitStack()

    async def enter() -> Stage:
        return await opened.enter_async_context(
            served(NANO, [worker], Pools(0, 1), data_dir=str(folder))  # type: ignore[list-item]
        )

    try:
        yield thread.run(enter()), worker
    finally:
        thread.run(opened.aclose())
        thread.close()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stage, RealWorker]]:
    """The config of a worker with two ranks, speculation and host memory."""
    with cluster(tmp_path_factory.mktemp("two"), 2, speculate=2, cache_host_bytes=1 << 28) as started:
        yield started


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stage, RealWorker]]:
    """The config of a worker with one rank, which also speculates, so that its latents have the same layout."""
    with cluster(tmp_path_factory.mktemp("one"), 1, speculate=2) as started:
        yield started


def ling(stage: Stage, *words: str) -> tuple[int, str]:
    ended = CliRunner().invoke(app, ["snapshot", *words, "--url", stage.url])
    return ended.exit_code, ended.output.replace("\n", " ").strip()


def ask(stage: Stage, session: str, messages: Any, **more: Any) -> Any:
    body = {"model": "auto", "messages": messages, "max_tokens": 40, "seed": 5, "session_id": session, **more}
    answer = stage.http.post(f"{stage.url}/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def hello(name: str) -> list[dict[str, str]]:
    """The first message of a conversation, which differs for each name."""
    return [{"role": "user", "content": f"{name}: " + "Tell me about the sea, and how you are, in a few words. " * 4}]


def no_files(worker: RealWorker) -> None:
    """Wait until the worker has noticed that a connection ended, and has erased what came over it."""
    folder = worker.leader._files._folder
    while folder is not None and list(folder.iterdir()):
        time.sleep(0.01)


@pytest.mark.parametrize("tier", ["device", "host"])
@pytest.mark.parametrize("form", [None, FORM], ids=["free", "grammar"])
def test_a_session_continues_in_another_cluster(
    two: tuple[Stage, RealWorker], one: tuple[Stage, RealWorker], tmp_path: Path, form: Any, tier: str
) -> None:
    (there, sender), (here, taker) = two, one
    name = f"{tier}-{'form' if form else 'free'}"
    file = str(tmp_path / "s.safetensors")
    more = {"response_format": form} if form else {}
    first = ask(there, name, hello(name), **more)["choices"][0]["message"]["content"]
    if tier == "host":
        assert there.http.post(f"{there.url}/v1/sessions/{name}/park").status_code == 200
        while there.http.get(f"{there.url}/v1/sessions/{name}").json()["tier"] != "host":
            time.sleep(0.01)
    code, told = ling(there, "save", name, file)
    assert code == 0, told
    assert "of 2 ranks" in told
    head = read_head(Path(file)).head
    assert len(head.positions) == 2  # the prompt's end and the answer's
    code, told = ling(here, "load", file, name)
    assert code == 0, told
    assert f"the first {head.position} from its state" in told
    again = [*hello(name), {"role": "assistant", "content": first}, {"role": "user", "content": "And then?"}]
    mine = ask(here, name, again, temperature=0)
    theirs = ask(there, name, again, temperature=0)
    assert mine["choices"][0]["message"] == theirs["choices"][0]["message"]
    assert mine["usage"]["prompt_tokens_details"]["cached_tokens"] == head.position
    # The last answer again, from its own prompt's state.
    code, told = ling(here, "replay", file)
    assert code == 0, told
    assert told.startswith("equal: ")
    assert f"; {head.positions[0]} of " in told
    no_files(sender)
    no_files(taker)


def test_a_failed_request_is_saved_with_the_state_that_is_left(
    two: tuple[Stage, RealWorker], one: tuple[Stage, RealWorker], tmp_path: Path
) -> None:
    (there, _), (here, _) = two, one
    right = ask(there, "asked-before", hello("late"), seed=11)
    config = there.gateway.config
    there.gateway.config = dataclasses.replace(config, request_timeout_s=0.0)
    try:
        body = {"model": "auto", "messages": hello("late"), "max_tokens": 40, "seed": 11}
        headers = {"x-request-id": "late"}
        failed = there.http.post(f"{there.url}/v1/chat/completions", json=body, headers=headers)
        assert failed.status_code == 504
    finally:
        there.gateway.config = config
    file = str(tmp_path / "late.safetensors")
    code, told = ling(there, "save", "late", file, "--request")
    assert code == 0, told
    assert "it failed: no end within 0 s" in told
    head = read_head(Path(file)).head
    assert head.position
    code, told = ling(here, "replay", file)
    assert code == 0, told
    count = right["usage"]["completion_tokens"]
    assert f"equal: 0 tokens, then {count} more without a failure; {head.position} of" in told


def damaged(content: bytes) -> bytes:
    at = len(content) - 40
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def test_a_damaged_state_is_refused_and_costs_nothing(
    two: tuple[Stage, RealWorker], one: tuple[Stage, RealWorker], tmp_path: Path
) -> None:
    (there, _), (here, taker) = two, one
    ask(there, "damaged", hello("damaged"), seed=21)
    file = tmp_path / "d.safetensors"
    assert ling(there, "save", "damaged", str(file))[0] == 0
    content = file.read_bytes()
    kept = set(taker.leader._scheduler.cache.index)
    for bad, told in (
        (damaged(content), "does not match"), (content[:-100], "cut short"), (content + b"x", "or was added to"),
    ):  # fmt: skip
        answer = here.http.post(f"{here.url}/v1/sessions/bad/snapshot", content=bad)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_snapshot")
        assert told in answer.json()["error"]["message"]
    assert here.http.get(f"{here.url}/v1/sessions/bad").status_code == 404
    assert {k for k in taker.leader._scheduler.cache.index if k.position == read_head(file).head.position} <= kept
    no_files(taker)
    assert here.http.post(f"{here.url}/v1/sessions/bad/snapshot", content=content).status_code == 200


def test_a_worker_that_lays_latents_otherwise_takes_no_file(two: tuple[Stage, RealWorker], tmp_path: Path) -> None:
    there, _ = two
    ask(there, "layout", hello("layout"), seed=31)
    file = str(tmp_path / "s.safetensors")
    assert ling(there, "save", "layout", file)[0] == 0
    with cluster(tmp_path / "plain", 1) as (here, _):
        code, told = ling(here, "load", file, "s")
        assert code == 1
        assert "its layout is latent[4x144]float32" in told
