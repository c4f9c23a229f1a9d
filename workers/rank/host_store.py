"""Kept snapshots in a rank's host memory. Copies, checksums and checks run in a thread, beside the steps."""

import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from workers.cache.moves import Erase, Lend, Write
from workers.rank.disk_store import erase_part, read_part, write_part
from workers.rank.state_codec import Packed, StateCodec
from workers.schedule.step import Export, FetchFailed, Received, WriteFailed, Written
from workers.transfer.incoming import ReceivedSnapshot


class DamagedError(RuntimeError):
    """Host memory is damaged: it differs from what was stored."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry. tokens: the number of latents. rows: this rank's shard of them.

    crc: CRC-32 of rows and of the state.
    """

    tokens: int
    rows: Tensor
    state: Packed
    crc: tuple[int, int]


def _checked(entries: Iterable["Future[_Entry]"]) -> list[_Entry]:
    """The entries of a snapshot, of which the last has its state; DamagedError if bytes have changed."""
    found = [entry.result() for entry in entries]
    if any(_crc((entry.rows,)) != entry.crc[0] for entry in found) or _crc(found[-1].state.tensors) != found[-1].crc[1]:
        raise DamagedError("its checksum in host memory does not match")
    return found


class HostStore:
    """Kept snapshots in host memory and in files. tp: ranks.

    notify: gets `Received`, `FetchFailed`, `Written` and `WriteFailed`, from threads.
    """

    def __init__(
        self,
        rank: int,
        device: torch.device,
        codec: StateCodec,
        notify: Callable[[Received | FetchFailed | Written | WriteFailed], None],
        tp: int = 1,
    ) -> None:
        self._rank = rank
        self._tp = tp
        self._device = device
        self._codec = codec
        self._notify = notify
        self._entries: dict[int, Future[_Entry]] = {}
        self._fetched: dict[str, Future[ReceivedSnapshot]] = {}
        # A single thread keeps stores, fetches and drops in order.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="host-tier")
        # A separate thread for files, which are slower, so that memory does not wait for them.
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="disk-tier")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def store(self, key: int, tokens: int, rows: Tensor, state: Tensor | None) -> None:
        """Store copies of a snapshot's share, which belong to the store from now on. state: None for latents alone."""
        ready = torch.cuda.current_stream(self._device).record_event() if self._stream is not None else None

        def work() -> _Entry:
            if ready is not None:
                ready.synchronize()
            host_rows = self._to_host(rows)
            packed = self._codec.pack(state).map(self._to_host) if state is not None else Packed(())
            self._wait()
            return _Entry(tokens, host_rows, packed, (_crc((host_rows,)), _crc(packed.tensors)))

        self._entries[key] = self._thread.submit(work)

    def drop(self, key: int, *, latents: bool = True) -> None:
        """Free an entry, or its state alone; running fetches keep what they need."""
        entry = self._entries.pop(key, None)
        if entry is not None and not latents:
            self._entries[key] = self._thread.submit(lambda: replace(entry.result(), state=Packed(())))

    def write(self, write: Write) -> None:
        """Write a snapshot to a file, from the entries that hold it now."""
        entries = [self._entries[key] for key in write.keys]

        def work() -> None:
            found = _checked(entries)
            rows = [(entry.tokens, entry.rows) for entry in found]
            ends = list(accumulate((entry.tokens for entry in found), initial=write.start))[1:]
            wanted = {write.position, *write.states}
            states = {
                at: entry.state
                for at, (end, entry) in enumerate(zip(ends, found, strict=True))
                if end in wanted and entry.state.tensors
            }
            write_part(write, self._rank, self._tp, rows, states)

        def done(future: "Future[None]") -> None:
            if not future.cancelled():
                error = future.exception()
                self._notify(
                    Written(self._rank, write.file)
                    if error is None
                    else WriteFailed(self._rank, write.file, str(error))
                )

        self._disk.submit(work).add_done_callback(done)

    def erase(self, erase: Erase) -> None:
        """Remove a file, or its state, after earlier work on it."""
        self._disk.submit(erase_part, erase.file, self._rank, self._tp, latents=erase.latents)

    def read(self, request_id: str, files: tuple[str, ...], start: int, position: int) -> None:
        """Bring latents [start, position) and the state after them from files to the device.

        Received or FetchFailed reports the end.
        """

        def work() -> ReceivedSnapshot:
            rows, packed, codec = read_part(files, self._rank, self._tp, position)
            first = position - sum(tokens for tokens, _ in rows)
            parts = tuple((tokens, self._to_device(shard)) for tokens, shard in rows)
            state = codec.unpack(packed.map(self._to_device))
            self._wait()
            return ReceivedSnapshot(parts, state, self._tp, start - first)

        self._fetched[request_id] = future = self._disk.submit(work)
        future.add_done_callback(lambda done: self._done(request_id, done))

    def fetch(self, request_id: str, keys: tuple[int, ...], start: int, position: int) -> None:
        """Bring latents [start, position) and the last entry's state to the device.

        Received or FetchFailed reports the end.
        """
        entries = [self._entries[key] for key in keys]

        def work() -> ReceivedSnapshot:
            found = _checked(entries)
            first = position - sum(entry.tokens for entry in found)
            parts = tuple((entry.tokens, self._to_device(entry.rows)) for entry in found)
            state = self._codec.unpack(found[-1].state.map(self._to_device))
            self._wait()
            return ReceivedSnapshot(parts, state, self._tp, start - first)

        self._fetched[request_id] = future = self._thread.submit(work)
        future.add_done_callback(lambda done: self._done(request_id, done))

    def lend(self, lend: Lend, send: Callable[[Export, Tensor, Tensor | None], None]) -> None:
        """Give a snapshot's parts in host memory or a file to `send`; FetchFailed reports a damaged one.

        They are sent without a copy on the device, so that its memory is not needed.
        """
        entries = [self._entries[key] for key in lend.keys]

        def work() -> None:
            if lend.files:
                parts, packed, codec = read_part(lend.files, self._rank, self._tp, lend.position)
            else:
                found = _checked(entries)
                parts, packed, codec = [(entry.tokens, entry.rows) for entry in found], found[-1].state, self._codec
            start = lend.position - sum(tokens for tokens, _ in parts)
            for n, (tokens, rows) in enumerate(parts, 1):
                state = codec.unpack(packed) if n == len(parts) else None
                part = Export(lend.request_id, lend.peer, -1, (), start, start + tokens, state is not None, lend.ranks)
                send(part, rows, state)
                start += tokens

        def failed(done: Future[None]) -> None:
            if not done.cancelled() and (error := done.exception()) is not None:
                self._notify(FetchFailed(self._rank, lend.request_id, str(error), lend.peer))

        thread = self._disk if lend.files else self._thread
        thread.submit(work).add_done_callback(failed)

    def take(self, request_id: str) -> ReceivedSnapshot:
        """Hand out a snapshot that was notified as Received, once; KeyError for any other."""
        return self._fetched.pop(request_id).result()

    def discard(self, request_id: str) -> None:
        """Give up a fetch."""
        self._fetched.pop(request_id, None)

    def close(self) -> None:
        """End the threads. Entries are lost, and files are complete."""
        self._disk.shutdown(wait=True)
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _done(self, request_id: str, done: Future[ReceivedSnapshot]) -> None:
        if done.cancelled():
            return
        error = done.exception()
        self._notify(
            Received(self._rank, request_id) if error is None else FetchFailed(self._rank, request_id, str(error))
        )

    def _to_host(self, tensor: Tensor) -> Tensor:
        if self._stream is None:
            return tensor
        with torch.cuda.stream(self._stream):
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            return host.copy_(tensor, non_blocking=True)

    def _to_device(self, tensor: Tensor) -> Tensor:
        if self._stream is None:
            return tensor
        with torch.cuda.stream(self._stream):
            return tensor.to(self._device, non_blocking=True)

    def _wait(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()


def _crc(tensors: Sequence[Tensor]) -> int:
    crc = 0
    for tensor in tensors:
        crc = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc
