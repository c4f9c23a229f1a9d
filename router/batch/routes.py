"""The paths of files and batches over one gateway."""

from typing import Any, NoReturn

from starlette.requests import Request
from starlette.routing import Route

from router.api.chat import Chat
from router.api.completions import Completions
from router.api.generate import Api
from router.api.responses.lines import ResponseLines
from router.batch.batches import Batches
from router.batch.files import Files
from router.batch.runner import BatchRunner
from router.errors import invalid
from router.relay.gateway import Gateway
from router.store.store import Store
from router.text.tools import ToolParser


def batch_routes(gateway: Gateway, parser: type[ToolParser]) -> list[Route]:
    """Without a folder to keep things in, all of them refuse. The gateway runs the batches."""
    if gateway.config.data_dir is None:
        return [
            Route(f"/v1/{what}{rest}", _off, methods=["GET", "POST", "DELETE"])
            for what in ("files", "batches")
            for rest in ("", "/{rest:path}")
        ]
    store = Store(gateway.config.data_dir)
    apis: dict[str, Api[Any]] = {
        "/v1/chat/completions": Chat(parser),
        "/v1/completions": Completions(),
        "/v1/responses": ResponseLines(parser),
    }
    runner = BatchRunner(gateway, store, apis)
    gateway.alongside(runner)
    files, batches = Files(store, gateway.config), Batches(store, runner, gateway.config)
    return [
        Route("/v1/files", files.create, methods=["POST"]),
        Route("/v1/files", files.page, methods=["GET"]),
        Route("/v1/files/{file_id}", files.retrieve, methods=["GET"]),
        Route("/v1/files/{file_id}", files.delete, methods=["DELETE"]),
        Route("/v1/files/{file_id}/content", files.content, methods=["GET"]),
        Route("/v1/batches", batches.create, methods=["POST"]),
        Route("/v1/batches", batches.page, methods=["GET"]),
        Route("/v1/batches/{batch_id}", batches.retrieve, methods=["GET"]),
        Route("/v1/batches/{batch_id}/cancel", batches.cancel, methods=["POST"]),
    ]


async def _off(request: Request) -> NoReturn:
    raise invalid(
        "files and batches are off: the server has no folder to keep them in, which the setting router.data_dir names",
        code="no_data_dir",
    )
