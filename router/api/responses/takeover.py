"""Continues responses whose routers have died."""

import asyncio
import hashlib
import logging
from contextlib import ExitStack
from dataclasses import replace

from msgspec import structs

from router.api.generate import job_of
from router.api.prompts import make_choices
from router.api.request import Request
from router.api.responses.answers import Response
from router.api.responses.background import Background
from router.api.responses.events import closing
from router.api.responses.resource import failure
from router.api.responses.rows import Lapsed
from router.api.responses.schema import ResponseRequest
from router.api.responses.serializer import ResponseSerializer
from router.api.responses.store import ResponseStore
from router.api.session_turn import begin_turn
from router.errors import ApiError
from router.http.body import parse
from router.http.caller import Caller
from router.relay.gateway import Gateway
from router.relay.keyed import Had, Keyed
from router.relay.sessions import Sessions

_log = logging.getLogger(__name__)
_LOOK_S = 1.0
_AT_ONCE = 8


def run_key(response_id: str, taken: int = 0) -> Keyed:
    """The key under which workers know a response that runs without its client. taken: tokens that were told."""
    name = hashlib.blake2b(f"response {response_id}".encode(), digest_size=16).digest()
    return Keyed(name, name, (Had(taken, False),) if taken else (), tells_ids=False)


def seeded(request: Request, keyed: Keyed) -> Request:
    """The request, such that every router has the same answer computed."""
    if request.sampling.seed is not None:
        return request
    return replace(request, sampling=structs.replace(request.sampling, seed=keyed.seed))


class Takeover:
    """One router's takeover. It looks for lapsed leases while the router serves."""

    def __init__(self, gateway: Gateway, store: ResponseStore, background: Background, sessions: Sessions) -> None:
        self._gateway = gateway
        self._sessions = sessions
        self._store = store
        self._background = background
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, on the running event loop."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop taking responses over."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            if self._gateway.unready() is not None or not self._store.begun:
                continue
            try:
                for lapsed in await self._store.claim(_AT_ONCE):
                    await self._go_on(lapsed)
            except Exception:
                _log.exception("responses of routers that have died were not taken over")

    async def _go_on(self, lapsed: Lapsed) -> None:
        body = lapsed.record.body
        _log.info("response %s goes on here, behind %d tokens and %d events", body["id"], lapsed.taken, lapsed.told)
        try:
            await self._start(lapsed)
        except ApiError as error:
            if error.status in (429, 503):  # for want of room or of workers: it lapses again, for whoever has some
                return
            failed: Response = {**body, **failure(error)}
            data = closing(failed, lapsed.told) if lapsed.streamed else b""
            await self._store.finish(failed, lapsed.told, lapsed.told + 1, data)

    async def _start(self, lapsed: Lapsed) -> None:
        gateway, record = self._gateway, lapsed.record
        request = parse(lapsed.asked, ResponseRequest)
        keyed = run_key(record.body["id"], lapsed.taken)
        lowered = seeded(request.lower(record.earlier.items, record.items), keyed)
        with ExitStack() as holds:
            permit = holds.enter_context(gateway.admitted(1))
            (choice,) = await make_choices(gateway, lowered, record.tenant)
            caller = Caller(record.body["id"], record.tenant, priority=request.priority)
            job = job_of(lowered, [choice], caller, gateway.config, None, keyed)
            await gateway.rejoin(job)
            turn = await begin_turn(self._sessions, lowered.session, caller, job)
            holds.enter_context(self._sessions.held(turn))
            holds.enter_context(gateway.flying(job, permit))
            shape = ResponseSerializer(record.body, choice, gateway.tokenizer, None)
            self._background.start(job, shape, holds.pop_all(), streamed=lapsed.streamed, told=lapsed.told)
