"""Helpers for batches with fake workers, through the openai SDK on the test's event loop."""

import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
from openai.types import Batch

from tests.router.conftest import Stage, pair, served
from tests.router.fake_worker import FakeWorker

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
OVER = ("completed", "failed", "expired", "cancelled")


def line(name: str, endpoint: str = CHAT, **fields: Any) -> str:
    """A line of an input file. Its prompt is its name, so that a test can find it at the workers."""
    text = {"messages": [{"role": "user", "content": name}]} if endpoint == CHAT else {"prompt": name}
    body = {"model": "tiny", "max_tokens": 3, "temperature": 0, **text, **fields}
    return json.dumps({"custom_id": name, "method": "POST", "url": endpoint, "body": body})


def lines(count: int, endpoint: str = CHAT, **fields: Any) -> str:
    """An input file with so many lines."""
    return "".join(line(f"r{i}", endpoint, **fields) + "\n" for i in range(count))


@dataclass
class Desk:
    """A served router and a client for it."""

    stage: Stage
    sdk: openai.AsyncOpenAI

    async def upload(self, text: str) -> str:
        """Upload an input file; returns its id."""
        return (await self.sdk.files.create(file=("in.jsonl", text.encode()), purpose="batch")).id

    async def begin(self, text: str, endpoint: Any = CHAT, **options: Any) -> Batch:
        """Create a batch of these lines."""
        file_id = await self.upload(text)
        return await self.sdk.batches.create(
            input_file_id=file_id, endpoint=endpoint, completion_window="24h", **options
        )

    async def until(self, batch_id: str, met: Callable[[Batch], bool]) -> Batch:
        """Wait until the condition holds, and return the batch."""
        while True:
            batch = await self.sdk.batches.retrieve(batch_id)
            if met(batch):
                return batch
            assert batch.status not in OVER, f"{batch.status} already: {batch.errors}"

    async def end(self, batch_id: str) -> Batch:
        """Wait until the batch is over, and return it."""
        return await self.until(batch_id, lambda batch: batch.status in OVER)

    async def read(self, file_id: str | None) -> list[dict[str, Any]]:
        """A file's lines; [] if there is no file."""
        if file_id is None:
            return []
        content = await self.sdk.files.content(file_id)
        return [json.loads(text) for text in content.text.splitlines()]

    def asked(self, worker_id: str = "d0") -> list[str]:
        """The prompts that a worker has received."""
        decode = self.stage.gateway.tokenizer.decode
        prompts = [decode(request.token_ids) for request in self.stage[worker_id].received]
        return [prompt.removeprefix("<user>").removesuffix("<assistant>") for prompt in prompts]


@asynccontextmanager
async def desk(
    checkpoint: Path, folder: Path, workers: list[FakeWorker] | None = None, key: str = "-", **options: Any
) -> AsyncIterator[Desk]:
    """Serve a router with this data folder, and with a pair of workers or other ones."""
    stage: Stage
    async with served(checkpoint, workers or pair(), data_dir=str(folder), **options) as stage:
        http = httpx.AsyncClient(verify=False, timeout=60)
        async with openai.AsyncOpenAI(base_url=f"{stage.url}/v1", api_key=key, max_retries=0, http_client=http) as sdk:
            yield Desk(stage, sdk)


Work = Callable[[Desk], Coroutine[Any, Any, None]]
