"""Saves kept snapshots as files for routers, and keeps snapshots from routers' files.

A file goes through a folder of the worker's own. The ranks write their parts of it there, or read it, as they do for
the disk tier; it is erased once it has left, or once its states are on the device.
"""

import asyncio
import contextlib
import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from wire.codec import CLUSTER, WireError
from wire.protocol import (
    FileKept,
    FilePart,
    FileRefused,
    LoadFile,
    SamplingParams,
    SaveFile,
    SeqOutput,
    WorkerInfo,
)
from wire.snapshot_file import SnapshotFile, SnapshotFileError, SnapshotHead, Turn, join, read_head
from workers.cache.disk_folder import SUFFIX, rank_file
from workers.cache.kept import Kept
from workers.cache.moves import Write
from workers.config import StateDtype, WorkerConfig
from workers.model.config import LingConfig
from workers.schedule.scheduler import Scheduler
from workers.schedule.sequence import Sequence
from workers.schedule.step import FetchFailed, WriteFailed, Written
from workers.sizes import dtype_name

_PATIENCE_S = 120.0
_ONE_TOKEN = SamplingParams(max_tokens=1, seed=0, temperature=0.0)
_NAMES: dict[StateDtype, tuple[str, ...]] = {"float32": ("F32",), "bfloat16": ("BF16",), "int8": ("I8", "F32")}


class _Refused(Exception):
    """The worker refuses a file; the message is for the router."""


class Files:
    """One worker's. add: schedules a sequence. drop: frees one. wake: there is something for the next step.

    Files lie where the system has temporary ones, readable by their owner alone.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        info: WorkerInfo,
        model: LingConfig,
        config: WorkerConfig,
        add: Callable[[Sequence], None],
        drop: Callable[[str], None],
        wake: Callable[[], None],
    ) -> None:
        self._scheduler = scheduler
        self._info = info
        self._model = model
        self._config = config
        self._add, self._drop, self._wake = add, drop, wake
        self._folder: Path | None = None
        self._names = itertools.count()
        self._one = asyncio.Lock()  # the ranks write or read one at a time
        self._writing: tuple[str, set[int], asyncio.Future[None]] | None = None  # file, ranks that have written theirs
        self._bringing: tuple[str, asyncio.Future[None]] | None = None  # request

    def close(self) -> None:
        """Erase all unfinished files."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    # What happens beside

    def written(self, event: Written | WriteFailed) -> bool:
        """Note that a rank wrote its part of a file, or could not; returns whether the file is one of these."""
        if self._writing is None or self._writing[0] != event.file:
            return False
        _, ranks, done = self._writing
        if not done.done():
            ranks.add(event.rank)
            if isinstance(event, WriteFailed):
                done.set_exception(_Refused(f"the snapshot could not be written: {event.reason}"))
            elif len(ranks) == len(self._info.ranks):
                done.set_result(None)
        return True

    def fetch_failed(self, event: FetchFailed) -> None:
        """A rank could not read a file."""
        if self._bringing is not None and self._bringing[0] == event.request_id and not self._bringing[1].done():
            self._bringing[1].set_exception(_Refused(event.reason))

    def ended(self, outputs: Iterable[SeqOutput]) -> None:
        """Look in the outputs for sequences that only this object knows of."""
        if self._bringing is not None:
            request_id, done = self._bringing
            if not done.done() and any(o.request_id == request_id and o.finish is not None for o in outputs):
                done.set_result(None)

    # One connection

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a router's request on its connection; WireError if it asks for something else."""
        asked = await CLUSTER.read(reader)
        try:
            match asked:
                case SaveFile():
                    await self._save(asked, writer)
                case LoadFile():
                    await self._load(asked, reader)
                    writer.write(CLUSTER.encode(FileKept()))
                case _:
                    raise WireError(f"{type(asked).__name__} asks for no file")
        except (_Refused, SnapshotFileError, OSError, TimeoutError) as error:
            reason = str(error) or f"it took longer than {_PATIENCE_S:g} s"
            writer.write(CLUSTER.encode(FileRefused(reason)))
        await writer.drain()

    async def _save(self, asked: SaveFile, writer: asyncio.StreamWriter) -> None:
        turn = msgspec.json.decode(asked.turn, type=Turn)
        with contextlib.ExitStack() as stack:
            async with self._one:
                paths = await self._parts(asked, stack)
                files = [[stack.enter_context(path.open("rb")) for path in line] for line in paths]
            pieces = join(files, turn, asked.token_ids)
            while piece := await asyncio.to_thread(next, pieces, b""):
                writer.write(CLUSTER.encode(FilePart(piece)))
                async with asyncio.timeout(_PATIENCE_S):
                    await writer.drain()
        writer.write(CLUSTER.encode(FilePart(b"")))

    async def _parts(self, asked: SaveFile, stack: contextlib.ExitStack) -> list[list[Path]]:
        """The files with each rank's part of a snapshot, written if there are none."""
        cache, tp = self._scheduler.cache, len(self._info.ranks)
        found = [cache.index.by_digest(mark.position, mark.digest) for mark in asked.marks]
        line = sorted((kept for kept in found if kept is not None), key=lambda kept: kept.position)
        if not line:
            raise _Refused("the snapshot is no longer kept here")
        last = line[-1]
        file = str(self._made() / f"out-{next(self._names)}")
        info, position = self._info, last.position

        def write(keys: tuple[int, ...]) -> Write:
            ids = asked.token_ids.first(position).packed
            dtype, states = self._config.cache_state_dtype, tuple(kept.position for kept in line)
            return Write(file, keys, position, ids, "", info.weights_id, info.layout, dtype, states)

        if not cache.write_out(line, write):
            return [[Path(rank_file(one, rank, tp)) for one in cache.disk.files(last, 0)] for rank in range(tp)]
        paths = [Path(rank_file(file, rank, tp)) for rank in range(tp)]
        for path in paths:
            stack.callback(path.unlink, missing_ok=True)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writing = (file, set(), done)
        self._wake()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await done
        finally:
            self._writing = None
        return [[path] for path in paths]

    async def _load(self, asked: LoadFile, reader: asyncio.StreamReader) -> None:
        path = self._made() / f"in-{next(self._names)}{SUFFIX}"
        try:
            with path.open("xb") as file:
                size = 0
                while part := await self._part(reader):
                    size += len(part)
                    if size > self.most_bytes:
                        raise _Refused(f"the file has more than the {self.most_bytes} bytes that fit here")
                    file.write(part)
            content = await asyncio.to_thread(read_head, path)
            latents = dtype_name(self._config, self._model)
            if (reason := misfit(content, self._info, self._model, latents)) is not None:
                raise _Refused(reason)
            async with self._one:
                await self._keep(content, str(path), asked.scope)
        finally:
            path.unlink(missing_ok=True)

    async def _keep(self, content: SnapshotFile, path: str, scope: str) -> None:
        """Bring each state of a file to the device, where the cache keeps it."""
        cache, now = self._scheduler.cache, time.monotonic()
        if not cache.slots.size:
            raise _Refused("this worker keeps no snapshots: cache.mode is off")
        entered: list[Kept] = []
        try:
            for position in content.head.positions:
                kept = cache.enter_file(content.token_ids, position, scope, path, now)
                if kept is not None:  # else it is kept already
                    kept.pins += 1
                    entered.append(kept)
            for kept in entered:
                await self._bring(content, kept, scope)
            if entered and entered[-1].slot < 0:
                raise _Refused("this worker has no room on its device to keep the snapshot; try again later")
        finally:
            for kept in entered:
                kept.pins -= 1
                cache.leave_file(kept)
            self._wake()

    async def _bring(self, content: SnapshotFile, kept: Kept, scope: str) -> None:
        """Bring a state to the device and keep it, by a sequence that computes one token after it."""
        tokens = content.token_ids[: kept.position + 1]
        request_id = f"file-{next(self._names)}"
        seq = Sequence(
            request_id=request_id, tokens=tokens, prompt_tokens=len(tokens), sampling=_ONE_TOKEN, priority=0, order=0,
            handoff=False, source=None, arrived=time.monotonic(), scope=scope, warm=True,
        )  # fmt: skip
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._bringing = (request_id, done)
        self._add(seq)
        self._wake()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await done
        finally:
            self._bringing = None
            self._drop(request_id)

    async def _part(self, reader: asyncio.StreamReader) -> bytes:
        async with asyncio.timeout(_PATIENCE_S):
            message = await CLUSTER.read(reader)
        if not isinstance(message, FilePart):
            raise WireError(f"{type(message).__name__} is no part of a file")
        return message.data

    @property
    def most_bytes(self) -> int:
        """The most bytes of a file that fits here."""
        heads, key, value = self._model.state_shape(1)
        state = self._model.linear_layers * heads * key * value * 4
        return 2 * state + self._info.max_model_len * (self._info.token_bytes + 4) + 16 * 1024 * 1024

    def _made(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="ling-files-"))
        return self._folder


def misfit(content: SnapshotFile, info: WorkerInfo, model: LingConfig, latents: str) -> str | None:
    """Why a worker can't keep a file's snapshot; None if it can. latents: their dtype there."""
    head = content.head
    for name, theirs, mine in (
        ("weights", head.weights_id, info.weights_id), ("layout", head.layout, info.layout),
    ):  # fmt: skip
        if theirs != mine:
            return f"it is of the {name} {theirs}, this worker's are {mine}"
    if not head.position < len(content.token_ids) <= info.max_model_len:
        return f"it has {len(content.token_ids)} tokens, this worker takes at most {info.max_model_len}"
    ids = content.token_ids.array()
    if min(ids) < 0 or max(ids) >= info.vocab_size:
        return f"a token id is outside the vocabulary of {info.vocab_size}"
    heads = model.num_attention_heads
    if head.start or heads % head.split or head.ranks != tuple(range(head.split)) or head.state_dtype not in _NAMES:
        return f"it holds ranks {head.ranks} of {head.split}, states in {head.state_dtype}: a whole one is needed"
    found = {name: (entry.dtype, entry.shape) for name, entry in content.tensors.items() if name.startswith("rank")}
    if found != dict(_tensors(head, model, latents)):
        return "its tensors are not those that its header says"
    return None


def _tensors(head: SnapshotHead, model: LingConfig, latents: str) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """The dtype and shape of each tensor that a file of all ranks has, by its name."""
    latent = {"bfloat16": "BF16", "float32": "F32"}[latents]
    heads, key, value = model.state_shape(head.split)
    for rank in range(head.split):
        for part, count in enumerate(head.parts):
            yield (
                f"rank{rank}.rows.{part}",
                (latent, (-(-count // head.split), model.latent_layers, model.latent_width)),
            )
        for part in head.states:
            for n, dtype in enumerate(_NAMES[head.state_dtype]):  # type: ignore[index]
                shape = (model.linear_layers, heads, *((1, 1) if n else (key, value)))
                yield f"rank{rank}.state.{part}.{n}", (dtype, shape)
