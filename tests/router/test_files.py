"""Tests files: their limits, their lists, and malformed uploads."""

import asyncio
import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import httpx
import openai
import pytest
import zstandard

from tests.router.batching import CHAT, desk, lines
from tests.router.conftest import pair, served

pytestmark = pytest.mark.timeout(60)


def test_a_file_comes_back_as_it_was_sent_until_it_is_deleted(checkpoint: Path, tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000

    async def play() -> None:
        async with desk(checkpoint, tmp_path / "deep" / "data") as at:
            keep = {"anchor": "created_at", "seconds": 3600}
            file = await at.sdk.files.create(file=("ü/x.jsonl", data), purpose="batch", expires_after=keep)  # type: ignore[arg-type]
            assert (file.bytes, file.filename, file.purpose, file.status) == (
                len(data), "ü/x.jsonl", "batch", "processed"
            )  # fmt: skip
            assert file.expires_at == file.created_at + 3600
            assert await at.sdk.files.retrieve(file.id) == file
            assert (await at.sdk.files.content(file.id)).content == data
            assert (tmp_path / "deep" / "data").stat().st_mode & 0o77 == 0
            deleted = await at.sdk.files.delete(file.id)
            assert (deleted.id, deleted.deleted) == (file.id, True)
            for ask in (at.sdk.files.retrieve, at.sdk.files.content, at.sdk.files.delete):
                with pytest.raises(openai.NotFoundError):
                    await ask(file.id)
            assert list((tmp_path / "deep" / "data" / "files").iterdir()) == []

    asyncio.run(play())


def test_files_are_listed_in_pages(checkpoint: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with desk(checkpoint, tmp_path) as at:
            made = [await at.upload(lines(1)) for _ in range(5)]
            assert [f.id async for f in at.sdk.files.list(limit=2)] == made[::-1]
            assert [f.id async for f in at.sdk.files.list(limit=2, order="asc")] == made
            assert [f.id async for f in at.sdk.files.list(purpose="batch_output")] == []
            async with at.stage.client() as http:
                for query, name in (
                    ("limit=0", "limit"), ("order=up", "order"), ("colour=red", "colour"), ("after=file-x", "after"),
                    ("limit=1&limit=2", "limit"),
                ):  # fmt: skip
                    refused = await http.get(f"/v1/files?{query}")
                    assert (refused.status_code, refused.json()["error"]["param"]) == (400, name)

    asyncio.run(play())


def test_an_upload_beyond_a_limit_is_refused_and_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    options = {"max_file_bytes": 4096, "max_stored_bytes": 6000, "max_batch_lines": 3}

    async def play() -> None:
        async with desk(checkpoint, tmp_path, **options) as at:
            with pytest.raises(openai.APIStatusError) as large:
                await at.upload("x" * 40_000)
            assert (large.value.status_code, large.value.code) == (413, "file_too_large")
            kept = await at.upload(lines(3).ljust(4000))
            with pytest.raises(openai.APIStatusError) as full:
                await at.upload("x" * 3000)
            assert (full.value.status_code, full.value.code) == (413, "storage_full")
            assert [f.name for f in (tmp_path / "files").iterdir()] == [kept]
            batch = await at.end((await at.begin(lines(4).rjust(900))).id)
            assert batch.errors is not None
            assert [(e.code, e.line) for e in batch.errors.data or []] == [("too_many_lines", 4)]

    asyncio.run(play())


def test_a_file_that_a_batch_still_reads_is_not_deleted(checkpoint: Path, tmp_path: Path) -> None:
    async def play() -> None:
        async with desk(checkpoint, tmp_path) as at:
            at.stage["d0"].gate.clear()
            begun = await at.begin(lines(2))
            with pytest.raises(openai.ConflictError, match=begun.id):
                await at.sdk.files.delete(begun.input_file_id)
            at.stage["d0"].gate.set()
            ended = await at.end(begun.id)
            await at.sdk.files.delete(begun.input_file_id)
            assert ended.output_file_id is not None
            with pytest.raises(openai.BadRequestError, match="purpose is 'batch_output'"):
                await at.sdk.batches.create(input_file_id=ended.output_file_id, endpoint=CHAT, completion_window="24h")

    asyncio.run(play())


def test_a_malformed_upload_is_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    part = {"file": ("in.jsonl", b"x")}
    asks = (
        ({"json": {"purpose": "batch"}}, None, "multipart"),
        ({"content": b"--", "headers": {"content-type": "multipart/form-data"}}, None, "form can't be read"),
        ({"files": part}, "purpose", "required"),
        ({"files": part, "data": {"purpose": "fine-tune"}}, "purpose", "'fine-tune' is not supported"),
        ({"files": {"purpose": (None, "batch")}}, "file", "required"),
        ({"files": {"purpose": (None, "batch"), "file": (None, "text")}}, "file", "filename"),
        ({"files": part, "data": {"purpose": "batch", "expires_after[seconds]": "5"}}, "expires_after", ""),
        ({"files": part, "data": {"purpose": "batch", "colour": "red"}}, "colour", "not supported"),
    )

    async def play() -> None:
        async with desk(checkpoint, tmp_path) as at, at.stage.client() as http:
            for ask, param, message in asks:
                answer = await http.post("/v1/files", **ask)  # type: ignore[arg-type]
                error = answer.json()["error"]
                assert answer.status_code == 400, error
                assert (error["param"] or "").startswith(param or "")
                assert message in error["message"]
            assert (await http.get("/v1/files")).json()["data"] == []
            assert (await http.post("/v1/batches", content=b"[]")).json()["error"]["code"] == "invalid_json"

    asyncio.run(play())


def test_an_upload_that_stops_is_given_up(checkpoint: Path, tmp_path: Path) -> None:
    head = (
        b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\n"
        b"content-length: 1000\r\n\r\n"
    )
    begun = b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\nabc'

    async def play() -> None:
        async with desk(checkpoint, tmp_path, body_timeout_s=0.05) as at:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(at.stage.url.rsplit(":", 1)[1]))
            writer.write(head + begun)
            assert b" 408 " in await reader.readline()
            writer.write(begun)
            writer.close()
            _, leaving = await asyncio.open_connection("127.0.0.1", int(at.stage.url.rsplit(":", 1)[1]))
            leaving.write(head + begun)
            leaving.close()
            assert (await at.sdk.files.list()).data == []

    asyncio.run(play())


def test_without_a_folder_files_and_batches_are_refused_with_the_setting(checkpoint: Path) -> None:
    async def play() -> None:
        async with served(checkpoint, pair()) as stage, stage.client() as http:
            asks = (
                ("POST", "/v1/files"), ("GET", "/v1/files"), ("GET", "/v1/files/x/content"), ("DELETE", "/v1/files/x"),
                ("POST", "/v1/batches"), ("POST", "/v1/batches/x/cancel"),
            )  # fmt: skip
            for method, path in asks:
                answer: httpx.Response = await http.request(method, path)
                assert answer.status_code == 400
                assert "router.data_dir" in answer.json()["error"]["message"]

    asyncio.run(play())


def test_a_folder_that_can_not_be_written_to_is_refused_at_the_start(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.store.store.os.access", lambda path, mode: path != tmp_path)

    async def play() -> None:
        async with served(checkpoint, pair(), data_dir=str(tmp_path / "none")):
            pass

    with pytest.raises(PermissionError, match="can't be written to"):
        asyncio.run(play())


ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.compress,
}


def test_an_encoded_form_is_read_within_its_bounds(checkpoint: Path, tmp_path: Path) -> None:
    data = lines(3).encode()

    async def play() -> None:
        async with desk(checkpoint, tmp_path, max_file_bytes=1 << 20) as at, at.stage.client() as http:

            async def upload(data: bytes, encoding: str, encode: Callable[[bytes], bytes]) -> httpx.Response:
                form = httpx.Request("POST", "http://x", files={"file": ("x.jsonl", data)}, data={"purpose": "batch"})
                headers = {"content-type": form.headers["content-type"], "content-encoding": encoding}
                return await http.post("/v1/files", content=encode(form.read()), headers=headers)

            for encoding, encode in ENCODERS.items():
                kept = await upload(data, encoding, encode)
                assert kept.status_code == 200, kept.text
                assert (await at.sdk.files.content(kept.json()["id"])).content == data
                bomb = await upload(bytes(64 << 20), encoding, encode)
                assert (bomb.status_code, bomb.json()["error"]["code"]) == (413, "file_too_large")
                wrong = await upload(data, encoding, lambda body: b"\x00\x01" + body)
                assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "invalid_encoding")
            unknown = await upload(data, "br", bytes)
            assert (unknown.status_code, unknown.json()["error"]["param"]) == (415, "content-encoding")

    asyncio.run(play())
