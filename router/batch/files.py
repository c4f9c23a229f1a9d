"""/v1/files: inputs and outputs of batches."""

import asyncio
import tempfile
from functools import partial
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import Message, Receive

from router.api.answers.records import Deleted, FileRecord
from router.api.schema import Strict
from router.config import RouterConfig
from router.errors import ApiError, invalid
from router.http.body import ClientGone, encoding_of, explain, undecodable
from router.http.caller import caller_of
from router.http.encodings import DECODERS, DecodeError
from router.http.query import NoQuery, json_response, listed, read_query
from router.store import files
from router.store.files import InUse, NoRoom, Page, StoredFile, new_file_id
from router.store.store import Store, now

# How long a file is kept if its upload does not say.
DEFAULT_SECONDS = 30 * 24 * 3600
# The form's fields besides the file.
_FORM_BYTES = 16 * 1024


class Keeping(Strict):
    """How long a file is kept after its creation."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=DEFAULT_SECONDS)


class FileUpload(Strict):
    """Body of /v1/files, as a form (`multipart/form-data`)."""

    file: Any = Field(json_schema_extra={"type": "file"})
    purpose: Literal["batch"]
    expires_after: Keeping | None = Field(None, description="30 days if it is not sent")


class FilesQuery(BaseModel):
    """Query of a list of files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after: str | None = None
    limit: int = Field(10_000, ge=1, le=10_000)
    order: Literal["asc", "desc"] = "desc"
    purpose: Literal["batch", "batch_output"] | None = None


class Files:
    """Handlers over one store. They treat what belongs to another tenant as missing."""

    def __init__(self, store: Store, config: RouterConfig) -> None:
        self._store = store
        self._config = config

    async def create(self, request: Request) -> Response:
        """Upload a file."""
        read_query(request, NoQuery)
        config = self._config
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise invalid("a file is sent as multipart/form-data, with 'file' and 'purpose'", code="invalid_form")
        encoding, receive = encoding_of(request.scope), _bounded(request.receive, config)
        # An encoded form waits on disk until it is whole: read bit by bit, its decoder could give gigabytes at once.
        with tempfile.TemporaryFile() as kept:
            if encoding is not None:
                await _keep_body(receive, kept)
                receive = _bounded(_decoded(kept, encoding), config)
            form = await _form(Request(request.scope, receive))
        try:
            return json_response(_shown(await self._keep(caller_of(request.scope).tenant, _read_form(form))))
        finally:
            await form.close()

    async def page(self, request: Request) -> Response:
        """List the tenant's files."""
        query = read_query(request, FilesQuery)
        span = Page(query.after, query.limit, query.order == "desc")
        tenant = caller_of(request.scope).tenant
        found = await self._store.run(partial(files.page, tenant=tenant, purpose=query.purpose, span=span, now=now()))
        if found is None:
            raise invalid(f"'after': there is no file {query.after!r}", "after")
        return listed([_shown(file) for file in found], query.limit)

    async def retrieve(self, request: Request) -> Response:
        """A file's record."""
        read_query(request, NoQuery)
        return json_response(_shown(await self._find(request)))

    async def content(self, request: Request) -> Response:
        """A file's bytes."""
        read_query(request, NoQuery)
        file = await self._find(request)
        path = self._store.contents.path(file.id)
        if not await asyncio.to_thread(path.is_file):
            raise ApiError(404, f"the content of {file.id!r} is gone", code="file_content_gone")
        return FileResponse(path, media_type="application/octet-stream", filename=file.filename)

    async def delete(self, request: Request) -> Response:
        """Delete a file's record and content."""
        read_query(request, NoQuery)
        file_id = request.path_params["file_id"]
        tenant = caller_of(request.scope).tenant
        try:
            done = await self._store.run(partial(files.delete, tenant=tenant, file_id=file_id, now=now()))
        except InUse as error:
            raise ApiError(409, f"batch {error} still reads the file: cancel it first", code="file_in_use") from None
        if not done:
            raise no_file(file_id)
        await asyncio.to_thread(self._store.contents.delete, file_id)
        deleted: Deleted = {"id": file_id, "object": "file", "deleted": True}
        return json_response(deleted)

    async def _find(self, request: Request) -> StoredFile:
        file_id = request.path_params["file_id"]
        tenant = caller_of(request.scope).tenant
        file = await self._store.run(partial(files.find, tenant=tenant, file_id=file_id, now=now()))
        if file is None:
            raise no_file(file_id)
        return file

    async def _keep(self, tenant: str, upload: FileUpload) -> StoredFile:
        part: UploadFile = upload.file
        size, limit = part.size or 0, self._config.max_stored_bytes
        made = now()
        expires = made + (upload.expires_after.seconds if upload.expires_after is not None else DEFAULT_SECONDS)
        name = (part.filename or "file")[:255]
        file = StoredFile(new_file_id(), tenant, name, upload.purpose, size, made, expires)
        await asyncio.to_thread(self._store.contents.keep, file.id, part.file)
        try:
            await self._store.run(partial(files.add, file=file, limit=limit))
        except NoRoom as error:
            await asyncio.to_thread(self._store.contents.delete, file.id)
            message = f"your files hold {error} bytes of at most {limit}, and {size} more do not fit: delete some"
            raise ApiError(413, message, param="file", code="storage_full") from None
        return file


def no_file(file_id: str, param: str | None = None) -> ApiError:
    """The 404 for a file that does not exist."""
    return ApiError(404, f"there is no file {file_id[:80]!r}", param=param, code="file_not_found")


async def _form(request: Request) -> FormData:
    try:
        return await request.form(max_files=1, max_fields=8, max_part_size=_FORM_BYTES)
    except HTTPException as error:
        raise invalid(f"the form can't be read: {error.detail}", code="invalid_form") from None
    except (LookupError, UnicodeDecodeError) as error:
        raise invalid(f"the form's charset can't be read: {error}", code="invalid_form") from None


async def _keep_body(receive: Receive, file: BinaryIO) -> None:
    more = True
    while more:
        message = await receive()
        await asyncio.to_thread(file.write, message.get("body", b""))
        more = message.get("more_body", False)
    file.seek(0)


def _decoded(file: BinaryIO, encoding: str) -> Receive:
    """A `receive` of what an encoded body stands for; 400 where it is not in its encoding."""
    parts = DECODERS[encoding](file)

    async def receive() -> Message:
        try:
            part = await asyncio.to_thread(next, parts, b"")
        except DecodeError as error:
            raise undecodable(encoding, error) from None
        return {"type": "http.request", "body": part, "more_body": bool(part)}

    return receive


def _read_form(form: FormData) -> FileUpload:
    """Parse a form; `a[b]` names a field of an object, as the SDKs write them."""
    content: dict[str, Any] = {}
    for name, value in form.multi_items():
        outer, bracket, inner = name.partition("[")
        if bracket and inner.endswith("]"):
            within = content.setdefault(outer, {})
            if isinstance(within, dict):
                within[inner[:-1]] = int(value) if isinstance(value, str) and value.isdecimal() else value
        else:
            content[name] = value
    try:
        upload = FileUpload.model_validate(content)
    except ValidationError as error:
        raise explain(error.errors(include_url=False)[0]) from None
    if not isinstance(upload.file, UploadFile):
        raise invalid("'file' must be a part with a filename", "file")
    return upload


def _bounded(receive: Receive, config: RouterConfig) -> Receive:
    """`receive` of an upload, with 413 beyond the largest size and 408 if no byte comes for too long."""
    left = config.max_file_bytes + _FORM_BYTES

    async def bounded() -> Message:
        nonlocal left
        try:
            async with asyncio.timeout(config.body_timeout_s):
                message = await receive()
        except TimeoutError:
            raise ApiError(
                408, f"nothing of the file arrived for {config.body_timeout_s:g} s", code="body_timeout"
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        left -= len(message.get("body", b""))
        if left < 0:
            raise ApiError(413, f"the file exceeds {config.max_file_bytes} bytes", param="file", code="file_too_large")
        return message

    return bounded


def _shown(file: StoredFile) -> FileRecord:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }
