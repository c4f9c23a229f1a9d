"""Writes a batch's output and error files from the recorded results. Everything here blocks: call it in a thread."""

import itertools
import uuid
from collections.abc import Iterator
from functools import partial
from typing import Literal

from router.batch.lines import read
from router.http.json import encode
from router.store import batches
from router.store.batches import StoredBatch
from router.store.files import StoredFile, new_file_id
from router.store.store import Store, now

_AT_ONCE = 256
_UNANSWERED = {
    "expired": ("batch_expired", "the request was not answered before the batch's completion window was over"),
    "cancelled": ("batch_cancelled", "the batch was cancelled before the request was answered"),
}


def compose(
    store: Store, batch: StoredBatch, ending: Literal["completed", "expired", "cancelled"]
) -> tuple[StoredFile | None, StoredFile | None]:
    """The output and the error file. Contents are on disk, records yet to be added; None for an empty file.

    Answers stand in the order of their lines. Where a batch did not complete, the error file ends with its unanswered
    lines.
    """
    output = _keep(store, batch, "output", _recorded(store, batch, ok=True))
    errors = _recorded(store, batch, ok=False)
    if ending in _UNANSWERED:
        errors = itertools.chain(errors, _unanswered(store, batch, *_UNANSWERED[ending]))
    return output, _keep(store, batch, "error", errors)


def _recorded(store: Store, batch: StoredBatch, ok: bool) -> Iterator[bytes]:
    after = -1
    while found := store.call(partial(batches.results, batch_id=batch.id, ok=ok, after=after, limit=_AT_ONCE)):
        yield from (body for _, body in found)
        after = found[-1][0]


def _unanswered(store: Store, batch: StoredBatch, code: str, message: str) -> Iterator[bytes]:
    if batch.total == 0:
        return  # it was never validated: its lines may be malformed
    done = store.call(partial(batches.lines_done, batch_id=batch.id))
    for line in read(store.contents.path(batch.input_file_id)):
        if line.number not in done:
            error = {"code": code, "message": message}
            name = f"batch_req_{uuid.uuid4().hex}"
            content = {"id": name, "custom_id": line.custom_id, "response": None, "error": error}
            yield encode(content) + b"\n"


def _keep(store: Store, batch: StoredBatch, what: str, lines: Iterator[bytes]) -> StoredFile | None:
    first = next(lines, None)
    if first is None:
        return None
    file_id, size, made = new_file_id(), 0, now()
    with store.contents.writing(file_id) as out:
        for line in itertools.chain((first,), lines):
            size += out.write(line)
    name = f"{batch.id}_{what}.jsonl"
    return StoredFile(file_id, batch.tenant, name, "batch_output", size, made, made + batch.output_seconds)
