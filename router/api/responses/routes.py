"""The responses API over one gateway."""

import asyncio
import tempfile
from pathlib import Path

from starlette.routing import Route

from router.api.responses.background import Background
from router.api.responses.create import Create
from router.api.responses.folder import SharedFolder
from router.api.responses.rows import Bounds
from router.api.responses.store import ResponseStore
from router.api.responses.stored import Stored
from router.config import RouterConfig
from router.relay.gateway import Gateway
from router.text.tools import ToolParser

_FILE = "responses.sqlite3"


def responses(gateway: Gateway, parser: type[ToolParser]) -> list[Route]:
    """Its paths. What it holds ends with the gateway."""
    config = gateway.config
    folder = None if config.data_dir is not None else SharedFolder(_run_dir(config))
    path = folder.path if folder is not None else Path(config.data_dir or "")
    store = ResponseStore(path / _FILE, Bounds(config.max_responses, config.max_responses_bytes))
    background = Background(store)

    async def close() -> None:
        await background.close()
        await asyncio.to_thread(store.close)
        if folder is not None:
            folder.close()

    gateway.closers.append(close)
    create, stored = Create(gateway, parser, store, background), Stored(store, background)
    one = "/v1/responses/{response_id}"
    return [
        Route("/v1/responses", create, methods=["POST"]),
        Route(one, stored.retrieve, methods=["GET"]),
        Route(one, stored.delete, methods=["DELETE"]),
        Route(f"{one}/cancel", stored.cancel, methods=["POST"]),
        Route(f"{one}/input_items", stored.input_items, methods=["GET"]),
    ]


def _run_dir(config: RouterConfig) -> Path:
    return Path(config.run_dir) if config.run_dir is not None else Path(tempfile.mkdtemp(prefix="ling-router-"))
