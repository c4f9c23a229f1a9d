"""Collectives through torch.distributed: NCCL between GPUs, gloo between CPUs."""

import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed
from torch import Tensor

from workers.collectives.base import SILENT_S, Collectives, RankLost

_POLL_S = 0.05


class TorchCollectives(Collectives):
    """A process group of its own, apart from torch's default group. Raises RankLost when a peer is gone.

    It connects the GPUs when it is made: NCCL would connect them at the first operation, and give up on a rank that
    still loads.

    host, port: where rank 0 keeps the store at which the ranks meet; gloo's links use the same host.
    """

    def __init__(
        self,
        backend: Literal["gloo", "nccl"],
        rank: int,
        size: int,
        host: str,
        port: int,
        device: torch.device,
        timeout_s: float = SILENT_S,
    ) -> None:
        self.rank = rank
        self.size = size
        self._store: Any
        self._group: Any
        self._device = device
        self._barriers = 0
        timeout = timedelta(seconds=timeout_s)
        self._guarded("meet", lambda: self._connect(backend, host, port, device, timeout))

    def all_reduce(self, tensor: Tensor) -> Tensor:
        flat = tensor.contiguous()
        self._guarded("all_reduce", lambda: self._group.allreduce([flat]).wait())
        return flat if flat is tensor else tensor.copy_(flat)

    def all_gather(self, tensor: Tensor, dim: int) -> Tensor:
        flat = tensor.contiguous()
        parts = [torch.empty_like(flat) for _ in range(self.size)]
        self._guarded("all_gather", lambda: self._group.allgather([parts], [flat]).wait())
        return torch.cat(parts, dim)

    def barrier(self, patience_s: float = SILENT_S) -> None:
        self._guarded("barrier", lambda: self._await_all(patience_s))

    def close(self) -> None:
        self._group = None
        self._store = None

    def _connect(self, backend: str, host: str, port: int, device: torch.device, timeout: timedelta) -> None:
        listener = None
        if self.rank == 0:
            # Bound here, because the store by itself would listen on every interface.
            listener = socket.create_server((host, port))
        groups: Any = torch.distributed
        self._store = groups.TCPStore(
            host,
            port,
            self.size,
            is_master=self.rank == 0,
            timeout=timeout,
            master_listen_fd=None if listener is None else listener.detach(),
            use_libuv=False,
        )
        if backend == "nccl":
            torch.cuda.set_device(device)
            options = groups.ProcessGroupNCCL.Options()
            options._timeout = timeout
            self._group = groups.ProcessGroupNCCL(self._store, self.rank, self.size, options)
            self._touch()
        else:
            options = groups.ProcessGroupGloo._Options()
            options._timeout = timeout
            options._devices = [groups.ProcessGroupGloo.create_device(hostname=host)]
            self._group = groups.ProcessGroupGloo(self._store, self.rank, self.size, options)

    def _touch(self) -> None:
        """Do one operation of all ranks and wait for its end."""
        self._group.allreduce([torch.zeros(1, device=self._device)]).wait()
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def _await_all(self, patience_s: float) -> None:
        """Wait at the store first, because an operation ends the group if a rank is later than the group's timeout."""
        self._barriers += 1
        key = f"barrier-{self._barriers}"
        deadline = time.monotonic() + patience_s
        come = self._store.add(key, 1)
        while come < self.size:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{come} of {self.size} ranks came within {patience_s:g} s")
            time.sleep(_POLL_S)
            come = self._store.add(key, 0)
        # A rank that continues may close the store, so wait until all ranks have read it.
        self._touch()

    def _guarded(self, what: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise RankLost(f"rank {self.rank} of {self.size} failed in {what}: {reason}") from error
