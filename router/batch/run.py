"""Runs one batch from its recorded state to its end."""

import asyncio
import itertools
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import msgspec

from router.api.generate import Api
from router.batch.answer import Answered, answer
from router.batch.gate import Gate, Permit
from router.batch.lines import Line, check, read
from router.batch.outcome import compose
from router.http.json import encode
from router.relay.gateway import Gateway
from router.store import batches
from router.store.batches import BatchFault, Lease, Result, StoredBatch
from router.store.store import Store, now

_log = logging.getLogger(__name__)
_READ_AHEAD = 64
# A line is retried only a few times, because it may be what ends its workers.
_ATTEMPTS = 5
_PAUSE_S = (0.1, 5.0)
Ending = Literal["completed", "expired", "cancelled"]
_GONE: BatchFault = {
    "code": "input_file_gone",
    "message": "the input file's content is gone",
    "line": None,
    "param": "input_file_id",
}


class Run:
    """One batch. `task` ends with the batch, or with the lease; cancelled, it leaves the batch to another runner."""

    def __init__(
        self,
        gateway: Gateway,
        store: Store,
        apis: Mapping[str, Api[Any]],
        gate: Gate,
        lease: Lease,
        batch: StoredBatch,
    ) -> None:
        self.lease = lease
        self._gateway = gateway
        self._store = store
        self._api = apis[batch.endpoint]
        self._gate = gate
        self._batch = batch
        self._input = store.contents.path(batch.input_file_id)
        self._answering: asyncio.Task[None] | None = None
        self._cancelled = False
        self.task = asyncio.get_running_loop().create_task(self._run(), name=f"batch {batch.id}")

    def heed(self, batch: StoredBatch) -> None:
        """Follow the batch's record, in which any router may have cancelled the batch."""
        if batch.status == "cancelling":
            self._cancelled = True
            if self._answering is not None:
                self._answering.cancel()

    async def _run(self) -> None:
        if not await asyncio.to_thread(self._input.is_file):
            await self._fail([_GONE])
        elif self._batch.status != "validating" or await self._validated():
            await self._finish(await self._answered())

    async def _fail(self, errors: Sequence[BatchFault]) -> None:
        await self._store.run(partial(batches.fail, lease=self.lease, errors=errors, now=now()))

    async def _validated(self) -> bool:
        config = self._gateway.config
        checked = await asyncio.to_thread(
            check, self._input, self._batch.endpoint, config.max_batch_lines, config.max_body_bytes
        )
        if checked.errors:
            await self._fail(checked.errors)
            return False
        self._batch = await self._store.run(partial(batches.begin, lease=self.lease, total=checked.total, now=now()))
        return True

    async def _answered(self) -> Ending:
        """Run all lines; return how the batch ended."""
        if self._batch.status == "in_progress" and not self._cancelled:
            self._answering = asyncio.create_task(self._answer_all())
            try:
                async with asyncio.timeout(max(0.0, self._batch.expires_at - time.time())):
                    await self._answering
            except TimeoutError:
                return "expired"
            except asyncio.CancelledError:
                if not self._cancelled or self.task.cancelling():
                    raise
            self._batch = await self._store.run(partial(batches.finalize, lease=self.lease, now=now()))
        return "completed" if self._batch.status == "finalizing" else "cancelled"

    async def _answer_all(self) -> None:
        done = await self._store.run(partial(batches.lines_done, batch_id=self._batch.id))
        lines = read(self._input)
        async with asyncio.TaskGroup() as group:
            while ahead := await asyncio.to_thread(lambda: list(itertools.islice(lines, _READ_AHEAD))):
                for line in ahead:
                    if line.number not in done:
                        permit = await self._gate.enter()
                        task = group.create_task(self._answer(line, permit))
                        # A task that is cancelled before it begins does not run its `finally`.
                        task.add_done_callback(lambda _, permit=permit: permit.leave())  # type: ignore[misc]

    async def _answer(self, line: Line, permit: Permit) -> None:
        request_id = uuid.uuid4().hex
        for attempt in itertools.count(1):
            answered = await answer(self._gateway, self._api, line.body, self._batch.tenant, request_id, permit.sent)
            if not self._again(answered, attempt):
                break
            shortest, longest = _PAUSE_S
            await asyncio.sleep(min(longest, shortest * 2 ** min(attempt, 16)))
            await permit.again()
        self._gateway.metrics.batch_line(answered.status)
        result = Result(
            line.number, answered.status == 200, _written(line, answered, request_id),
            answered.input_tokens, answered.cached_tokens, answered.output_tokens,
        )  # fmt: skip
        await self._store.run(partial(batches.record, lease=self.lease, results=[result]))

    def _again(self, answered: Answered, attempt: int) -> bool:
        error = answered.error
        if error is None or (error.status < 500 and error.status != 429):
            return False
        none_live = error.code == "no_worker" and not any(self._gateway.table.live().values())
        return none_live or attempt < _ATTEMPTS

    async def _finish(self, ending: Ending) -> None:
        output, error = await asyncio.to_thread(compose, self._store, self._batch, ending)
        await self._store.run(
            partial(batches.finish, lease=self.lease, status=ending, output=output, error=error, now=now())
        )
        _log.info("batch %s is %s", self._batch.id, ending)


def _written(line: Line, answered: Answered, request_id: str) -> bytes:
    """The result as a line of the output or the error file."""
    response = {"status_code": answered.status, "request_id": request_id, "body": msgspec.Raw(answered.body)}
    content = {"id": f"batch_req_{request_id}", "custom_id": line.custom_id, "response": response, "error": None}
    return encode(content) + b"\n"
