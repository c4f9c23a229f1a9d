"""Tests TLS on the cluster's connections: who is let in, and what can be read on the way."""

import asyncio
import contextlib
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from msgspec import structs

from tests.certificates import environment, recording
from tests.workers.harness import Workers, workers
from tests.workers.test_worker import cases, config, pair
from tests.workers.transfer_ends import HOST, End, export, snapshot
from wire.tls import TlsError, load, tls
from workers.schedule.step import Expect, Link
from workers.transfer.channel import LinkBroken
from workers.transfer.control import Control
from workers.transfer.messages import Hail
from workers.transfer.negotiation import candidates
from workers.transfer.seal import Seal
from workers.transfer.stream import StreamMeeting, StreamReceiver, StreamVisit

pytestmark = pytest.mark.process


@pytest.fixture(autouse=True)
def _read_anew() -> Iterator[None]:
    tls.cache_clear()
    yield
    tls.cache_clear()


def use(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Set TLS variables for this process and its future children."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tls.cache_clear()


# What it is made of


@pytest.mark.parametrize("value", ["", "0", "false", "no"])
def test_without_the_variable_there_is_no_tls(value: str, tmp_path: Path) -> None:
    assert load(environment(tmp_path) | {"RAY_USE_TLS": value}) is None


def test_both_ends_ask_for_a_certificate_of_the_authority(tmp_path: Path) -> None:
    made = load(environment(tmp_path) | {"RAY_USE_TLS": "True"})
    assert made is not None
    for context in (made.acceptor, made.caller):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert len(context.get_ca_certs()) == 1


NAMES = ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_not_named_is_refused_by_its_variable(name: str, tmp_path: Path) -> None:
    variables = environment(tmp_path)
    del variables[name]
    with pytest.raises(TlsError, match=f"^{name}: RAY_USE_TLS is set, so it must name a file"):
        load(variables)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_not_there_is_refused_by_its_variable_and_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(TlsError, match=f"^{name}: can't read /nowhere/x.pem: No such file"):
        load(environment(tmp_path) | {name: "/nowhere/x.pem"})


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    good, other = environment(tmp_path / "a"), environment(tmp_path / "b")
    with pytest.raises(TlsError, match=r"RAY_TLS_SERVER_KEY: .* are not a certificate and its key"):
        load(good | {"RAY_TLS_SERVER_KEY": other["RAY_TLS_SERVER_KEY"]})
    (tmp_path / "text").write_text("no certificate")
    with pytest.raises(TlsError, match=r"^RAY_TLS_CA_CERT: .*/text holds no certificate"):
        load(good | {"RAY_TLS_CA_CERT": str(tmp_path / "text")})


# A leader, and who calls it


@pytest.mark.process
def test_workers_answer_as_without_it_and_nothing_of_it_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It covers router to leader, leader to leader and rank to rank; ranks are separate processes."""
    prompt, sampling, expected = max(cases(4), key=lambda case: len(case[0]))

    async def ask(started: Workers) -> bytes:
        """Send a request; returns the bytes that passed at the prefill worker's leader."""
        prefill, decode = await pair(started, 1)
        async with recording(prefill.info.port) as (port, seen):
            through = WorkerThrough(prefill.caller, structs.replace(prefill.ref, port=port))
            stream = started.split(through, decode, prompt, sampling)  # type: ignore[arg-type]
            assert (await stream.end()).error is None
            assert stream.token_ids == expected.token_ids
            for worker in started.all:
                await worker.caller.idle(worker.info)
            request = stream.request_id.encode()
        assert seen
        return bytes(seen).replace(request, b"<request>")

    async def run() -> bytes:
        async with workers() as started:
            return await ask(started)

    clear = asyncio.run(run())
    assert clear.count(b"<request>") >= 2
    assert b"prefill-" in clear
    use(monkeypatch, environment(tmp_path))
    sealed = asyncio.run(run())
    assert b"<request>" not in sealed
    assert b"prefill-" not in sealed


class WorkerThrough:
    """A worker whose address, as others get it, is a proxy's."""

    def __init__(self, caller: object, ref: object) -> None:
        self.caller, self.ref = caller, ref


@pytest.mark.process
def test_a_leader_refuses_callers_without_its_authority_s_certificate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, environment(tmp_path / "ours"))
    strange = load(environment(tmp_path / "theirs"))
    assert strange is not None

    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE

    async def told(context: ssl.SSLContext | None, port: int) -> bytes:
        """A leader's answer to a caller that sends something at once; b"" if it hangs up."""
        try:
            reader, writer = await asyncio.open_connection(HOST, port, ssl=context)
            writer.write(bytes(16))
            answer = await reader.read(1024)
            writer.close()
        except (ssl.SSLError, ConnectionError):
            return b""
        return answer

    async def run() -> None:
        async with workers() as started:
            port = (await started.start(config(), "decode")).info.port
            ours = tls()
            assert ours is not None
            assert len(await told(ours.caller, port)) == 32
            # At most an alert of TLS.
            assert len(await told(None, port)) < 32
            with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
                await asyncio.open_connection(HOST, port, ssl=strange.caller)
            # Who takes the leader's certificate, whatever it is, is still asked for its own.
            strange.caller.verify_mode = ssl.CERT_NONE
            assert await told(strange.caller, port) == b""
            assert await told(anyone, port) == b""

    asyncio.run(run())


@pytest.mark.process
def test_a_leader_says_before_it_loads_which_file_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, environment(tmp_path) | {"RAY_TLS_CA_CERT": "/nowhere/ca.pem"})

    async def run() -> None:
        async with workers() as started:
            with pytest.raises(TlsError, match=r"^RAY_TLS_CA_CERT: can't read /nowhere/ca\.pem"):
                await started.start(config(), "decode")

    asyncio.run(run())


# Ranks


def _links(prefill: End, decode: End) -> None:
    latents, state = snapshot(0, 64)
    decode.transfers.expect(Expect("a telling name", "P", 64))
    export(prefill, "a telling name", 0, latents[:32], None)
    export(prefill, "a telling name", 32, latents[32:], state)
    decode.wait_received("a telling name")
    prefill.wait_sent("a telling name")


@pytest.mark.parametrize("channel", ["shm", "gloo"])
def test_a_snapshot_moves_and_its_control_is_not_seen(
    channel: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def seen_between() -> bytes:
        tls.cache_clear()
        prefill, decode = End("P", channel), End("D", channel)  # type: ignore[arg-type]
        try:
            async with recording(prefill.transfers.port) as (port, seen):
                decode.transfers.link(Link("P", HOST, port))
                await asyncio.to_thread(_links, prefill, decode)
                return bytes(seen)
        finally:
            await asyncio.to_thread(decode.transfers.close)
            await asyncio.to_thread(prefill.transfers.close)

    assert b"a telling name" in asyncio.run(seen_between())
    use(monkeypatch, environment(tmp_path))
    sealed = asyncio.run(seen_between())
    assert len(sealed) > 1000
    assert b"a telling name" not in sealed
    assert b"float32" not in sealed


def test_tensors_between_hosts_are_encrypted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two ranks that treat each other as on another host, so that the tensors too go through TLS."""
    latents = torch.full((2048, 1, 512), 1.5)
    hosts = iter(("here", "there") * 4)
    monkeypatch.setattr("workers.transfer.negotiation.machine", lambda: next(hosts))
    make = StreamMeeting.__init__

    async def moved() -> tuple[bytes, torch.Tensor]:
        """Move a snapshot; returns the bytes of the payload's connection, and what arrived."""
        tls.cache_clear()
        loop, opened = asyncio.get_running_loop(), contextlib.AsyncExitStack()
        seen: list[bytearray] = []

        def through_a_proxy(meeting: StreamMeeting, host: str) -> None:
            make(meeting, host)
            proxy = opened.enter_async_context(recording(meeting.offer.port))
            port, passed = asyncio.run_coroutine_threadsafe(proxy, loop).result(10)
            meeting.offer = replace(meeting.offer, port=port)
            seen.append(passed)

        monkeypatch.setattr(StreamMeeting, "__init__", through_a_proxy)
        prefill, decode = End("P", "auto"), End("D", "auto")
        try:
            decode.link_to(prefill)
            decode.transfers.expect(Expect("r", "P", len(latents)))
            export(prefill, "r", 0, latents, torch.zeros(3))
            await asyncio.to_thread(decode.wait_received, "r")
            await asyncio.to_thread(prefill.wait_sent, "r")
            ((_, rows),) = decode.transfers.take("r").parts
            return b"".join(seen), rows
        finally:
            await asyncio.to_thread(decode.transfers.close)
            await asyncio.to_thread(prefill.transfers.close)
            await opened.aclose()

    use(monkeypatch, environment(tmp_path))
    passed, rows = asyncio.run(moved())
    assert torch.equal(rows, latents)
    assert len(passed) > latents.nbytes
    assert latents[0, 0, :2].numpy().tobytes() * 2 not in passed


def test_a_peer_with_a_certificate_but_without_the_offer_gets_no_snapshot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = load(environment(tmp_path))
    assert made is not None
    meeting = StreamMeeting(HOST)
    visit = StreamVisit(replace(meeting.offer, key="guessed"))
    with ThreadPoolExecutor(1) as other:
        joining = other.submit(visit.join, made)
        with pytest.raises(LinkBroken, match="does not know"):
            meeting.join(made)
        with pytest.raises(LinkBroken):
            joining.result(30)


def test_a_peer_that_ends_during_a_transfer_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, environment(tmp_path))
    hosts = iter(("here", "there") * 4)
    monkeypatch.setattr("workers.transfer.negotiation.machine", lambda: next(hosts))
    before = set(threading.enumerate())
    prefill, decode = End("P", "auto"), End("D", "auto")
    for index in range(64):
        export(prefill, "big", index * 1024, torch.zeros(1024, 1, 256), None)
    first = threading.Event()
    received = StreamReceiver.receive

    def receive_and_tell(stream: StreamReceiver, piece: torch.Tensor) -> None:
        received(stream, piece)
        first.set()

    monkeypatch.setattr(StreamReceiver, "receive", receive_and_tell)
    decode.link_to(prefill)
    decode.transfers.expect(Expect("big", "P", 1 << 20))
    assert first.wait(30)
    decode.transfers.close()
    lost = prefill.wait_lost(10)
    assert (lost.peer, lost.request_ids) == ("D", ("big",))
    prefill.transfers.close()
    assert not {t.name for t in set(threading.enumerate()) - before if t.name.startswith("transfer")}


@pytest.mark.parametrize(
    ("own", "peer", "kind"),
    [
        ({}, {}, "shm"),
        ({}, {"machine": "other"}, "tls"),
        ({"device": "cuda"}, {"device": "cuda"}, "nccl"),
        ({"device": "cuda"}, {"device": "cuda", "machine": "other"}, "tls"),
        ({"channel": "gloo"}, {"machine": "other"}, "gloo"),
        ({"nixl": "rdma"}, {"nixl": "rdma", "machine": "other"}, "tls"),
        ({"nixl": "rdma", "device": "cuda"}, {"nixl": "rdma", "device": "cuda"}, "nccl"),
    ],
)
def test_which_channel_is_taken_with_tls(own: dict[str, str], peer: dict[str, str], kind: str) -> None:
    plain = {"worker_id": "w", "rank": 0, "ranks": 1, "machine": "m", "device": "cpu", "channel": "auto"}
    hails = [Hail(**(plain | changes)) for changes in (own, peer)]  # type: ignore[arg-type]
    assert candidates(*hails, sealed=True)[0] == kind


@pytest.mark.parametrize("decode_has", ["another authority's", "none"])
def test_a_rank_refuses_callers_without_its_authority_s_certificate(
    decode_has: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, environment(tmp_path / "theirs") | ({} if decode_has != "none" else {"RAY_USE_TLS": "0"}))
    decode = End("D", "auto")
    use(monkeypatch, environment(tmp_path / "ours"))
    prefill = End("P", "auto")
    try:
        if decode_has == "none":
            # It waits for the other's nonce, and that for its hello: whoever loses patience first.
            monkeypatch.setattr("workers.transfer.incoming.HANDSHAKE_S", 1)
        decode.link_to(prefill)
        reason = decode.wait_lost().reason
        assert ("CERTIFICATE_VERIFY_FAILED" if decode_has != "none" else "broke") in reason
        assert not prefill.events
    finally:
        decode.transfers.close()
        prefill.transfers.close()


def test_the_reason_of_a_failed_handshake_is_not_sent_in_the_clear(tmp_path: Path) -> None:
    ours, theirs = load(environment(tmp_path / "ours")), load(environment(tmp_path / "theirs"))
    assert ours is not None
    assert theirs is not None
    with socket.create_server((HOST, 0)) as listener:
        control = Control(socket.create_connection(listener.getsockname()))
        far = listener.accept()[0]
    told: list[bytes] = []

    def receive() -> bytes:
        told.append(far.recv(65536))
        return told[-1]

    with ThreadPoolExecutor(1) as other, far:
        meeting = other.submit(Seal(theirs.acceptor, calling=False).meet, receive, far.sendall)
        with pytest.raises(LinkBroken, match="CERTIFICATE_VERIFY_FAILED"):
            control.meet("", ours, calling=True)
        control.fault("a telling reason")
        control.release()
        with pytest.raises(ssl.SSLError):
            meeting.result(30)
        while receive():
            pass
    assert b"telling" not in b"".join(told)


def test_a_changed_byte_breaks_the_link(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, environment(tmp_path))
    prefill, decode = End("P", "shm"), End("D", "shm")

    async def run() -> str:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection(HOST, prefill.transfers.port)

            async def changed() -> None:
                passed = 0
                while data := bytearray(await there.read(4096)):
                    # Beyond the handshakes, in the offer and the parts.
                    passed += len(data)
                    if passed > 2500:
                        data[-1] ^= 1
                    writer.write(data)
                writer.close()

            async def straight() -> None:
                while data := await reader.read(4096):
                    back.write(data)
                back.close()

            await asyncio.gather(changed(), straight())

        async with await asyncio.start_server(serve, HOST, 0) as proxy:
            decode.transfers.link(Link("P", HOST, proxy.sockets[0].getsockname()[1]))
            latents, state = snapshot(0, 64)
            decode.transfers.expect(Expect("r", "P", 64))
            for start in range(0, 64, 4):
                export(prefill, "r", start, latents[start : start + 4], state if start == 60 else None)
            return (await asyncio.to_thread(decode.wait_lost)).reason

    try:
        assert "BAD_RECORD_MAC" in asyncio.run(run()).upper().replace(" ", "_")
    finally:
        decode.transfers.close()
        prefill.transfers.close()


def test_a_key_with_a_password_is_refused_and_not_asked_for(tmp_path: Path) -> None:
    variables = environment(tmp_path)
    locked = tmp_path / "locked"
    subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-in", variables["RAY_TLS_SERVER_KEY"], "-out", locked, "-passout", "pass:x"],
        check=True,
        env=os.environ,
    )
    with pytest.raises(TlsError, match="without a password"):
        load(variables | {"RAY_TLS_SERVER_KEY": str(locked)})
