"""Snapshots over HTTP: sessions and failed requests as files, sessions from files, and a session's last turn again."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import msgspec
from msgspec import structs
from pydantic import Field
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from router.api.answers.sessions import ReplayedTurn
from router.api.saved_turn import unfit
from router.api.schema import Strict, session_name
from router.api.session_turn import named
from router.api.sessions import SessionsApi
from router.config import RouterConfig
from router.errors import ApiError, invalid
from router.http.body import ClientGone, encoding_of, parse, read_body
from router.http.caller import Caller, caller_of
from router.http.query import NoQuery, json_response, read_query
from router.relay.choice import Choice, Prompt
from router.relay.gateway import Gateway
from router.relay.job import Job
from router.relay.prefixes import scope_of
from router.relay.recording import Recording
from router.relay.sessions import Sessions
from router.relay.snapshots import Snapshots
from wire.protocol import SamplingParams
from wire.tokens import TokenIds


class ReplayRequest(Strict):
    """Body of /v1/sessions/{id}/replay."""

    max_tokens: int | None = Field(None, ge=1, description="unset: as many as the answer has")


class SnapshotsApi:
    """Handlers. What belongs to another tenant is not there."""

    def __init__(self, gateway: Gateway, sessions: Sessions, snapshots: Snapshots, shown: SessionsApi) -> None:
        self._gateway = gateway
        self._sessions = sessions
        self._snapshots = snapshots
        self._shown = shown

    async def save(self, request: Request) -> Response:
        """A session as a file."""
        read_query(request, NoQuery)
        tenant, session_id = named(request)
        return _file(await self._snapshots.of_session(tenant, session_id), session_id)

    async def save_request(self, request: Request) -> Response:
        """A failed request as a file: one's own, or an operator's choice."""
        read_query(request, NoQuery)
        config, tenant = self._gateway.config, caller_of(request.scope).tenant
        request_id = request.path_params["request_id"]
        owner = None if tenant in config.operators else tenant
        return _file(await self._snapshots.of_request(owner, request_id), request_id)

    async def load(self, request: Request) -> Response:
        """A session from a file."""
        read_query(request, NoQuery)
        config, caller = self._gateway.config, caller_of(request.scope)
        if config.api_keys is not None and caller.tenant not in config.operators:
            # Nobody can tell from a file whether its states are what its tokens make.
            message = f"{caller.tenant!r} is not one of router.operators, who may open snapshots"
            raise ApiError(403, message, code="no_operator")
        if encoding_of(request.scope) is not None:
            raise ApiError(415, "a snapshot is sent without a content-encoding", code="unsupported_encoding")
        scope, session_id = self._scope(caller), request.path_params["session_id"]
        try:
            session_name(session_id)
        except ValueError as error:
            raise invalid(f"the session's name {session_id[:80]!r} {error}", "session_id") from None
        made = await self._snapshots.load(caller.tenant, session_id, scope, _body(request, config), self._unfit)
        await self._remember(caller.tenant, session_id)
        return self._shown.record(made)

    async def replay(self, request: Request) -> Response:
        """A session's last answer computed again, from its prompt and with its seed; the session stays as it is."""
        read_query(request, NoQuery)
        asked = parse(await read_body(request.scope, request.receive, self._gateway.config) or b"{}", ReplayRequest)
        caller = caller_of(request.scope)
        tenant, session_id = named(request)
        turn = await self._sessions.last_turn(tenant, session_id)
        known, sampling = TokenIds(turn.token_ids), msgspec.json.decode(turn.sampling, type=SamplingParams)
        answer = list(known[turn.prompt_tokens :])
        count = asked.max_tokens or len(answer)
        if not count:
            raise invalid(
                "the session's last answer has no tokens: there is nothing to replay", code="nothing_to_replay"
            )
        prompt = Prompt(known.first(turn.prompt_tokens))
        sampling = structs.replace(
            sampling, max_tokens=count, min_tokens=min(sampling.min_tokens, count), logprobs=None, prompt_logprobs=None
        )
        with self._gateway.admitted(1) as permit:
            choice = Choice(0, prompt, sampling, self._gateway.tokenizer, keep_ids=True)
            job = Job(
                [choice], stream=False, priority=caller.priority, account=caller.account, tenant=caller.tenant,
                prefix_scope=self._scope(caller),
            )  # fmt: skip
            caller.choices = [choice]
            with self._gateway.flying(job, permit):
                while not job.over:
                    await job.wait()
        if job.error is not None:
            raise job.error
        ids = choice.take().token_ids
        pairs = enumerate(zip(ids, answer, strict=False))
        shorter = min(len(ids), len(answer))
        at = next((i for i, (mine, theirs) in pairs if mine != theirs), shorter)
        replayed: ReplayedTurn = {
            "id": session_id,
            "object": "session.replay",
            "prompt_tokens": turn.prompt_tokens,
            "cached_tokens": choice.cached_tokens,
            "token_ids": ids,
            "answer_token_ids": answer,
            "equal_tokens": at,
            "equal": at == shorter and len(ids) >= len(answer),
        }
        return json_response(replayed)

    async def _remember(self, tenant: str, session_id: str) -> None:
        """The next turn reads the tokens of an answer in plain text as if they had been generated here."""
        turn = await self._sessions.last_turn(tenant, session_id)
        sampling = msgspec.json.decode(turn.sampling, type=SamplingParams)
        answer = tuple(TokenIds(turn.token_ids)[turn.prompt_tokens :])
        recording = Recording(partial(self._gateway.exact.keep, tenant), values=False)
        choice = Choice(0, Prompt(TokenIds(b"")), sampling, self._gateway.tokenizer, recording=recording)
        choice.feed(answer, (), "stop" if answer and answer[-1] in sampling.stop_token_ids else "length")
        choice.take()

    async def _unfit(self, token_ids: TokenIds, sampling: SamplingParams) -> str | None:
        reason = unfit(token_ids, sampling, self._gateway.limits())
        if reason is None and sampling.grammar is not None:
            fault = await self._gateway.check_grammar(sampling.grammar.text)
            reason = f"its grammar can't be enforced: {fault}" if fault is not None else None
        return reason

    def _scope(self, caller: Caller) -> str:
        return scope_of(caller.tenant, None, self._gateway.config.cache_share_all)


async def _body(request: Request, config: RouterConfig) -> AsyncIterator[bytes]:
    """The body piece by piece; 408 if the next one does not come in time."""
    pieces = request.stream()
    try:
        while True:
            async with asyncio.timeout(config.body_timeout_s):
                piece = await anext(pieces, None)
            if piece is None:
                return
            yield piece
    except ClientDisconnect:
        raise ClientGone from None
    except TimeoutError:
        message = f"nothing of the body came for {config.body_timeout_s:g} s"
        raise ApiError(408, message, code="body_timeout") from None


def _file(pieces: AsyncIterator[bytes], name: str) -> Response:
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "._~-") else "_" for c in name)
    headers = {"content-disposition": f'attachment; filename="{safe}.snapshot.safetensors"'}
    return StreamingResponse(pieces, media_type="application/octet-stream", headers=headers)
