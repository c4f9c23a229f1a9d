"""Fixtures with a router on loopback in front of fake workers, on an event loop in a thread."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import tokenizers
import uvicorn
from hypothesis import HealthCheck, settings
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from router.app import Gateway, ListedWorker, Pools, RouterConfig, create_app
from tests.router.fake_worker import VOCAB, FakeWorker

T = TypeVar("T")
# Examples are timed by the clock, and the machine may be busy with other things.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
TEMPLATE = (
    "{# detailed thinking #}{% if tools %}[{% for t in tools %}{{ t | tojson }}{% endfor %}]{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }}:{{ c.function.arguments }}]{% endfor %}"
    "{% if m.tool_call_id %}({{ m.tool_call_id }}){% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_checkpoint(folder: Path) -> Path:
    """Write a checkpoint folder for a router: a byte-level tokenizer in GPT-2's order, whose id 1 is the end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet[: VOCAB - 2]]
    vocab = {"<unk>": 0, "<|end|>": 1} | {t: i + 2 for i, t in enumerate(tokens)}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken("<|end|>", special=True)])
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (folder / "generation_config.json").write_text('{"eos_token_id": [1]}')
    (folder / "config.json").write_text('{"eos_token_id": 1}')
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder without weights."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@dataclass
class Stage:
    """A served router and its workers."""

    url: str
    gateway: Gateway
    workers: dict[str, FakeWorker]
    listed: list[ListedWorker] = field(default_factory=list)
    # One for all: making a client reads every certificate of the machine.
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60, verify=False))

    def __getitem__(self, worker_id: str) -> FakeWorker:
        return self.workers[worker_id]

    def client(self, **kwargs: Any) -> httpx.AsyncClient:
        """An HTTP client of the stage."""
        return httpx.AsyncClient(base_url=self.url, timeout=60, verify=False, **kwargs)

    async def until(self, met: Callable[[], bool]) -> None:
        """Poll until a condition holds that no message reports."""
        async with asyncio.timeout(60):
            while not met():
                await asyncio.sleep(0.002)


@asynccontextmanager
async def served(
    checkpoint: Path, workers: list[FakeWorker], pools: Pools | None = None, **options: Any
) -> AsyncIterator[Stage]:
    """Start workers, router and uvicorn; end them in reverse."""
    config = RouterConfig("tiny", str(checkpoint), **{"name_workers": True, **options})
    gateway = Gateway(config, pools or Pools())
    async with AsyncExitStack() as stack:
        for worker in workers:
            await worker.start()
            stack.push_async_callback(worker.die)
        await gateway.start()
        stack.push_async_callback(gateway.close)
        app = create_app(gateway)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off", access_log=False))
        task = asyncio.create_task(server._serve())
        stack.push_async_callback(_stop, server, task)
        async with asyncio.timeout(60):
            while not server.started:
                await asyncio.sleep(0.002)
        port = server.servers[0].sockets[0].getsockname()[1]
        stage = Stage(f"http://127.0.0.1:{port}", gateway, {w.info.worker_id: w for w in workers})
        stage.listed = [ListedWorker(w.ref, w.info.role) for w in workers]
        await gateway.update_workers(stage.listed)
        await stage.until(lambda: sum(gateway.table.live().values()) == len(workers))
        stack.callback(stage.http.close)
        yield stage


async def _stop(server: uvicorn.Server, task: "asyncio.Task[None]") -> None:
    server.should_exit = server.force_exit = True
    await task


class LoopThread:
    """An event loop in a thread, for clients that block."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(120)

    def close(self) -> None:
        """End the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()


def pair(**kwargs: Any) -> list[FakeWorker]:
    """A fake worker of each role."""
    return [FakeWorker("p0", "prefill", **kwargs), FakeWorker("d0", "decode", **kwargs)]


@contextmanager
def staged(checkpoint: Path, workers: list[FakeWorker], **options: Any) -> Iterator[Stage]:
    """A served router on a loop of its own, for clients that block."""
    thread, opened = LoopThread(), AsyncExitStack()

    async def enter() -> Stage:
        return await opened.enter_async_context(served(checkpoint, workers, **options))

    try:
        yield thread.run(enter())
    finally:
        thread.run(opened.aclose())
        thread.close()


@pytest.fixture(scope="module")
def stage(checkpoint: Path) -> Iterator[Stage]:
    """A served pair of workers in a thread of its own, shared by a module's tests."""
    with staged(checkpoint, pair()) as started:
        yield started
