"""/v1/workers: what operators do with workers."""

from starlette.requests import Request
from starlette.responses import Response

from router.api.answers.server import DrainedWorker
from router.errors import ApiError
from router.http.caller import caller_of
from router.http.query import NoQuery, json_response, read_query
from router.relay.gateway import Gateway


class WorkersApi:
    """Handlers for workers. If the server has keys, only tenants in `router.operators` may use them."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def drain(self, request: Request) -> Response:
        """End a worker; its answers continue at other workers of its pool."""
        read_query(request, NoQuery)
        config, tenant = self._gateway.config, caller_of(request.scope).tenant
        if config.api_keys is not None and tenant not in config.operators:
            raise ApiError(403, f"{tenant!r} is not one of router.operators, who may drain workers", code="no_operator")
        worker_id = request.path_params["worker_id"]
        table = self._gateway.table
        info = next((info for info in table.infos() if info.worker_id == worker_id), None)
        if info is None:
            raise ApiError(404, f"no live worker is called {worker_id[:128]!r}: see /status", code="worker_not_found")
        if table.live()[info.role] < 2:
            message = f"{worker_id!r} is the only live {info.role} worker: its answers could not continue anywhere"
            raise ApiError(409, message, code="last_worker")
        table.drain(worker_id)
        answer: DrainedWorker = {"id": worker_id, "object": "worker", "state": "draining"}
        return json_response(answer)
