"""Saves sessions and failed requests as files with the workers' states, and creates sessions from such files."""

import asyncio
import contextlib
import io
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import msgspec

from router.errors import ApiError, invalid
from router.relay.files import FileLost, LinkLost
from router.relay.job import Job
from router.relay.prefixes import marks_at
from router.relay.sessions import Sessions
from router.relay.stream import SequenceStream
from router.relay.table import WorkerTable
from router.store import failed
from router.store.connection import Records
from router.store.failed import FailedRequest
from router.store.sessions import End, StoredSession
from router.store.store import now
from wire.protocol import Mark, SamplingParams, SaveFile, WorkerInfo
from wire.snapshot_file import SnapshotFile, SnapshotFileError, Turn, needed, read, without_state
from wire.tokens import TokenIds

_log = logging.getLogger(__name__)
# What failed at the workers, or was never answered there.
_FAILED = ("request_quarantined", "worker_error", "worker_lost", "internal_error", "timeout")
_SEEN_S = 1.0


class Snapshots:
    """One router's. model: as clients call it. keep_s: how long a failed request can be saved."""

    def __init__(self, records: Records, table: WorkerTable, taken: Sessions, *, model: str, keep_s: int) -> None:
        self._records = records
        self._table = table
        self._sessions = taken
        self._model = model
        self._keep_s = keep_s
        self._noting: set[asyncio.Task[None]] = set()

    # To a file

    async def of_session(self, tenant: str, session_id: str) -> AsyncIterator[bytes]:
        """Yield a session's file; 404 if there is none, 503 without a worker."""
        found = await self._sessions.last_turn(tenant, session_id)
        sampling = msgspec.json.decode(found.sampling, type=SamplingParams)
        turn = Turn(self._model, found.prompt_tokens, sampling)
        return await self._file(found.marks, TokenIds(found.token_ids), turn)

    async def of_request(self, tenant: str | None, request_id: str) -> AsyncIterator[bytes]:
        """A failed request's file; tenant: whose it must be. 404, 503."""
        found = await self._records.run(partial(failed.find, tenant=tenant, request_id=request_id, now=now()))
        if found is None:
            message = f"no request {request_id[:128]!r} is known to have failed at the workers"
            raise ApiError(404, message, code="request_not_found")
        sampling = msgspec.json.decode(found.sampling, type=SamplingParams)
        turn = Turn(self._model, found.prompt_tokens, sampling, found.error)
        return await self._file(found.marks, TokenIds(found.token_ids), turn)

    def failed(self, job: Job) -> None:
        """Record a job that failed because of its workers, so that it can be saved."""
        error = job.error
        if error is None or error.code not in _FAILED or not job.request_id or not job.streams:
            return
        stream = next((one for one in job.streams if one.choice.finish is None), job.streams[0])
        note = partial(
            failed.keep, tenant=job.tenant, request_id=job.request_id, failed=self._record(stream, error.message),
            now=now(), expires=now() + self._keep_s,
        )  # fmt: skip

        async def keep() -> None:
            try:
                await self._records.run(note)
            except OSError:
                _log.exception("the failed request %s can't be saved", job.request_id)

        task = asyncio.create_task(keep())
        self._noting.add(task)
        task.add_done_callback(self._noting.discard)

    async def settle(self) -> None:
        """Finish what is being recorded."""
        await asyncio.gather(*self._noting)

    # From a file

    async def load(
        self,
        tenant: str,
        session_id: str,
        scope: str,
        body: AsyncIterator[bytes],
        unfit: Callable[[TokenIds, SamplingParams], Awaitable[str | None]],
    ) -> StoredSession:
        """Make a session of a file, whose states a decode worker keeps from then on; 400, 403, 409, 503.

        unfit: why no request can have these tokens and this sampling.
        """
        await self._sessions.check_free(tenant, session_id)
        begun, content = await self._begin(body)
        head, turn = content.head, content.head.turn
        if turn is None:
            raise _bad("it was not saved by `ling snapshot`: it does not say what was asked")
        info = self._taker(content)
        if (reason := await unfit(content.token_ids, turn.sampling)) is not None:
            raise _bad(reason)
        if head.positions:
            await self._send(info, scope, begun, content, body)
        else:
            async for piece in body:
                begun += piece
            _whole(len(begun), content)
        marks = marks_at(content.token_ids, head.positions, info.page_size, scope)
        end = End(content.token_ids.packed, turn.prompt_tokens, msgspec.json.encode(turn.sampling), marks, "")
        made = await self._sessions.enter(tenant, session_id, scope, end)
        # The worker tells of what it keeps on another connection: the session's next request is to find it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SEEN_S):
                while marks and self._table.kept(marks[:1]) is None:
                    await asyncio.sleep(0.005)
        return made

    # Inside

    async def _file(self, marks: tuple[Mark, ...], token_ids: TokenIds, turn: Turn) -> AsyncIterator[bytes]:
        pieces = self._pieces(marks, token_ids, turn)
        first = await anext(pieces)

        async def whole() -> AsyncIterator[bytes]:
            yield first
            async for piece in pieces:
                yield piece

        return whole()

    async def _pieces(self, marks: tuple[Mark, ...], token_ids: TokenIds, turn: Turn) -> AsyncIterator[bytes]:
        """The file with the longest state that a worker gives, else of the tokens alone."""
        infos = list(self._table.infos())
        if not infos:
            raise ApiError(503, "no worker is live to say which weights are served", code="no_worker")
        for at, mark in enumerate(marks):
            for ref in self._table.keepers(mark):
                begun = False
                try:
                    async with self._table.file_link(ref) as link:
                        async for piece in link.save(SaveFile(marks[at:], token_ids, msgspec.json.encode(turn))):
                            begun = True
                            yield piece
                    return
                except FileLost as error:
                    if begun:
                        raise
                    _log.warning("no snapshot from %s: %s", ref.worker_id, error)
        info = min(infos, key=lambda info: info.weights_id)
        yield without_state(info.weights_id, info.layout, turn, token_ids)

    def _record(self, stream: SequenceStream, error: str) -> FailedRequest:
        prompt, known = stream.choice.prompt, stream.token_ids
        ends = (len(known), len(prompt.token_ids), *prompt.boundaries)
        at = {p for end in ends for p in (end - 1, end)}
        marks = marks_at(known, at, self._sessions.page_size, stream.prefix_scope)
        sampling = msgspec.json.encode(stream.choice.sampling)
        return FailedRequest(known.packed, len(prompt.token_ids), sampling, marks, error)

    async def _begin(self, body: AsyncIterator[bytes]) -> tuple[bytes, SnapshotFile]:
        """A file's header and token ids, with as much of the rest as came with them."""
        longest = max((info.max_model_len for info in self._table.infos()), default=0)
        begun = bytearray()
        try:
            while len(begun) < (wanted := needed(begun)):
                if wanted > 32 * 1024 * 1024 + 4 * longest:
                    raise SnapshotFileError(f"its tokens are more than the {longest} that the workers take")
                if not (piece := await anext(body, b"")):
                    raise SnapshotFileError(f"it is cut short: it has {len(begun)} bytes of at least {wanted}")
                begun += piece
            return bytes(begun), read(io.BytesIO(begun))
        except SnapshotFileError as error:
            raise _bad(str(error)) from None

    def _taker(self, content: SnapshotFile) -> WorkerInfo:
        """Choose the decode worker that is to keep a file's states."""
        head = content.head
        infos = [info for info in self._table.infos() if info.role == "decode"]
        if not infos:
            raise ApiError(503, "no decode worker is live", code="no_worker")
        of = f"of the weights {head.weights_id} ({head.turn.model if head.turn is not None else 'unnamed'})"
        if not (alike := [info for info in infos if info.weights_id == head.weights_id]):
            raise _bad(f"it is {of}; this cluster serves {', '.join(sorted({info.weights_id for info in infos}))}")
        if not (fitting := [info for info in alike if not head.positions or info.layout == head.layout]):
            raise _bad(f"its layout is {head.layout}; this cluster's is {alike[0].layout}")
        tokens = len(content.token_ids)
        if not (roomy := [info for info in fitting if tokens <= info.max_model_len]):
            raise _bad(f"it has {tokens} tokens, more than the workers take")
        info = max(roomy, key=lambda info: self._table.load(info.worker_id).free_slots)
        most = 8 * info.state_bytes + tokens * (2 * info.token_bytes + 4) + 32 * 1024 * 1024
        if content.bytes > most:
            message = f"the file has {content.bytes} bytes; one of {tokens} tokens has at most {most}"
            raise ApiError(413, message, code="body_too_large")
        return info

    async def _send(
        self, info: WorkerInfo, scope: str, begun: bytes, content: SnapshotFile, body: AsyncIterator[bytes]
    ) -> None:
        ref = self._table.link(info.worker_id).ref
        sent = len(begun)
        try:
            async with self._table.file_link(ref) as link:
                await link.begin(scope)
                await link.send(begun)
                async for piece in body:
                    if piece:
                        sent += len(piece)
                        await link.send(piece)
                    if sent > content.bytes:
                        break
                _whole(sent, content)
                await link.send(b"")
                await link.kept()
        except LinkLost as error:
            raise ApiError(503, f"worker {info.worker_id} does not answer: {error}", code="worker_lost") from None
        except FileLost as error:
            raise _bad(f"worker {info.worker_id} does not take it: {error}") from None


def _whole(size: int, content: SnapshotFile) -> None:
    if size != content.bytes:
        raise _bad(f"it is cut short, or was added to: it has {size} bytes, its header describes {content.bytes}")


def _bad(reason: str) -> ApiError:
    return invalid(f"the file can't be opened: {reason}", code="invalid_snapshot")
