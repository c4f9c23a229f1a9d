"""Endpoints about the server: models, health, readiness, status, metrics."""

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from starlette.requests import Request
from starlette.responses import Response

from router.api.answering import check_model
from router.api.answers.anthropic import AnthropicModel, AnthropicModelList
from router.api.answers.server import (
    ClusterStatus,
    Health,
    Model,
    ModelList,
    PoolStatus,
    Ready,
    Root,
    StartingWorker,
    UnreachedWorker,
    Unready,
    WorkerPlace,
    WorkerStatus,
)
from router.http.json import encode
from router.relay.gateway import Gateway
from router.relay.link import WorkerLink
from router.text.tokenizer_info import tokenizer_info
from wire.progress import Starting
from wire.protocol import Miss, Role, Tier


class Info:
    """Handlers that read one gateway."""

    def __init__(self, gateway: Gateway, paths: tuple[str, ...]) -> None:
        self._gateway = gateway
        self._paths = paths

    async def root(self, request: Request) -> Response:
        """The list of paths."""
        model = self._gateway.config.served_model_name
        root: Root = {"name": "ling-cluster router", "model": model, "paths": self._paths}
        return _json(root)

    async def models(self, request: Request) -> Response:
        """The one served model, as a list."""
        if _of_anthropic(request):
            model = self._anthropic_model()
            listed: AnthropicModelList = {
                "data": [model],
                "first_id": model["id"],
                "last_id": model["id"],
                "has_more": False,
            }
            return _json(listed)
        models: ModelList = {"object": "list", "data": [self._model()]}
        return _json(models)

    async def model(self, request: Request) -> Response:
        """The served model by its name."""
        name = request.path_params["name"]
        check_model(name, self._gateway.config)
        return _json(self._anthropic_model() if _of_anthropic(request) else self._model())

    async def tokenizer_info(self, request: Request) -> Response:
        """The tokenizer's configuration from the checkpoint's files."""
        return _json(await asyncio.to_thread(tokenizer_info, Path(self._gateway.config.tokenizer)))

    async def health(self, request: Request) -> Response:
        """200 as long as the process is alive."""
        health: Health = {"status": "ok"}
        return _json(health)

    async def ready(self, request: Request) -> Response:
        """200 if a request can be served now, else 503 with the reason."""
        reason = self._gateway.unready()
        if reason is None:
            ready: Ready = {"ready": True}
            return _json(ready)
        retry = {"retry-after": str(self._gateway.config.retry_after_s)}
        unready: Unready = {"ready": False, "reason": reason}
        return _json(unready, 503, retry)

    async def status(self, request: Request) -> Response:
        """Pools, workers, ranks and their figures."""
        gateway = self._gateway
        reason = gateway.unready()
        links = sorted(gateway.table.links(), key=lambda link: link.ref.worker_id)
        configured: dict[Role, int] = {"prefill": gateway.pools.prefill, "decode": gateway.pools.decode}
        pools: dict[Role, PoolStatus] = {
            role: {
                "configured": count,
                "live": sum(link.live for link in links if link.role == role),
                "starting": [_starting(worker) for worker in gateway.starting if worker.role == role],
                "workers": [_worker(link) for link in links if link.role == role],
            }
            for role, count in configured.items()
        }
        status: ClusterStatus = {
            "model": gateway.config.served_model_name,
            "ready": reason is None,
            "reason": reason,
            "router": {
                "name": gateway.config.name,
                "pid": os.getpid(),
                "in_flight": gateway.in_flight,
                "max_queue": gateway.config.max_queue,
            },
            "pools": pools,
        }
        return _json(status)

    async def metrics(self, request: Request) -> Response:
        """Prometheus text."""
        return Response(self._gateway.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _model(self) -> Model:
        gateway = self._gateway
        longest = gateway.limits().max_model_len if any(gateway.table.live().values()) else gateway.config.max_model_len
        return {
            "id": gateway.config.served_model_name,
            "object": "model",
            "created": gateway.created,
            "owned_by": "ling-cluster",
            "max_model_len": longest,
        }

    def _anthropic_model(self) -> AnthropicModel:
        model = self._model()
        return {
            "id": model["id"],
            "type": "model",
            "display_name": model["id"],
            "created_at": datetime.fromtimestamp(model["created"], UTC).isoformat(),
            "lifecycle": "active",
            "max_input_tokens": model["max_model_len"],
            "max_tokens": model["max_model_len"],
        }


def _of_anthropic(request: Request) -> bool:
    """Whether the client is Anthropic's, for which the same path answers in another format."""
    return "anthropic-version" in request.headers


def _worker(link: WorkerLink) -> WorkerStatus | UnreachedWorker:
    ref = link.ref
    place: WorkerPlace = {"id": ref.worker_id, "state": link.state, "host": ref.host, "port": ref.port}
    if not link.connected:
        return {**place, "problem": link.problem}
    info, load = link.info, link.load
    return {
        **place,
        "node": info.node,
        "pid": info.pid,
        "weights_id": info.weights_id,
        "layout": info.layout,
        "max_model_len": info.max_model_len,
        "page_size": info.page_size,
        "pages": info.pages,
        "slots": info.slots,
        "queued": load.queued,
        "queued_tokens": load.queued_tokens,
        "running": load.running,
        "free_pages": load.free_pages,
        "free_slots": load.free_slots,
        "transferring": load.transferring,
        "unreachable": list(load.unreachable),
        "step_s": load.step_s,
        "kept": load.kept,
        "hit_tokens": load.hit_tokens,
        "missed_tokens": load.missed_tokens,
        "hits": load.hits,
        "misses": dict(zip(get_args(Miss), load.misses, strict=False)),
        "kept_by_tier": dict(zip(get_args(Tier), load.tiers, strict=False)),
        "saved_s": load.saved_s,
        "in_flight": link.in_flight,
        "ranks": [{"rank": r.rank, "pid": r.pid, "node": r.node, "device": r.device} for r in info.ranks],
    }


def _starting(worker: Starting) -> StartingWorker:
    progress = worker.progress
    return {
        "id": worker.worker_id,
        "node": worker.node,
        "stage": progress.stage,
        "done_bytes": progress.done,
        "total_bytes": progress.total,
        "done_files": progress.files_done,
        "total_files": progress.files,
        "bytes_per_s": progress.rate,
        "left_s": progress.left_s,
        "still_s": worker.still_s,
    }


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(encode(content), status, headers, "application/json")
