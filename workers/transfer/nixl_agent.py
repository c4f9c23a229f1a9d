"""Wraps NIXL's agents: one for each end of each link, with memory that is registered once.

An agent of its own makes what breaks end with its link: UCX forgets nothing of a connection that broke within an agent.
"""

import glob
import importlib
import importlib.util
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch

from workers.transfer.channel import LinkBroken
from workers.transfer.messages import Nixl

INSTALL = "pip install nixl-cu13, or nixl-cu12 beside a torch for CUDA 12"


def ability() -> Nixl:
    """What NIXL can use here, if it is installed."""
    if _module() is None:
        return "none"
    return "rdma" if _rdma() else "tcp"


class Memory:
    """Registered memory, initially zero, and its agent. Only one thread at a time may use it.

    agent: what another process needs to reach it.
    """

    def __init__(self, size: int, device: torch.device, host: str) -> None:
        """host: the address of the interface that is used where there is no RDMA. LinkBroken."""
        self._device = device
        self._under_way: list[Any] = []
        self._peers: list[str] = []
        with _told():
            api = _api()
            # No thread of NIXL's: it would take a core for itself as long as the link stands.
            config = api.nixl_agent_config(enable_prog_thread=False, backends=[])
            self._agent = api.nixl_agent(f"ling-{secrets.token_hex(8)}", config)
            self._agent.create_backend("UCX", {"engine_config": _transports(host), "ucx_ep_close_force": "true"})
            self.bytes = torch.zeros(size, dtype=torch.uint8, device=device)
            self._registered = self._agent.register_memory([self.bytes])
            self.agent: bytes = self._agent.get_agent_metadata()

    def meet(self, agent: bytes) -> None:
        """Connect to the peer's agent; LinkBroken if it can't be reached."""
        with _told():
            name = self._agent.add_remote_agent(agent)
            self._peers.append(name.decode() if isinstance(name, bytes) else name)

    def read(self, at: int, address: int, gpu: int | None, size: int) -> Any:
        """Begin to copy so many bytes from the peer's address to offset `at` here; what `done` asks by. LinkBroken."""
        with _told():
            own = self._part(self.bytes.data_ptr() + at, size, self._device.index)
            handle = self._agent.initialize_xfer("READ", own, self._part(address, size, gpu), self._peers[0])
            self._under_way.append(handle)
            self._agent.transfer(handle)
            return handle

    def done(self, handle: Any) -> bool:
        """Whether a copy is complete; LinkBroken if it failed."""
        with _told():
            state = self._agent.check_xfer_state(handle)
            if state == "ERR":
                raise LinkBroken("nixl: the copy failed")
            if state == "DONE":
                self._under_way.remove(handle)
                self._agent.release_xfer_handle(handle)
            return bool(state == "DONE")

    def progress(self) -> None:
        """Do what the peer's copies need of this end, where they don't go by RDMA. LinkBroken."""
        with _told():
            self._agent.get_new_notifs()

    def close(self) -> None:
        """End the agent and release the memory, which nothing is written to from then on; once."""
        cut = bool(self._under_way)
        for handle in self._under_way:
            # Raises if the copy is still being made, which the agent's end stops.
            with suppress(Exception):
                self._agent.release_xfer_handle(handle)
        self._under_way.clear()
        with suppress(Exception):
            for peer in self._peers:
                self._agent.remove_remote_agent(peer)
            self._agent.deregister_memory(self._registered)
        del self._agent, self._registered
        if cut and self._device.type == "cuda":
            # A copy between GPUs of one host is work of this process on the device.
            torch.cuda.synchronize(self._device)
        del self.bytes

    def _part(self, address: int, size: int, gpu: int | None) -> Any:
        return self._agent.get_xfer_descs([(address, size, gpu or 0)], "DRAM" if gpu is None else "VRAM")


@cache
def _module() -> str | None:
    """The installed build of NIXL: the one for torch's CUDA; without a GPU any will do."""
    cuda = torch.version.cuda
    names = [f"nixl_cu{cuda.partition('.')[0]}"] if cuda else ["nixl_cu13", "nixl_cu12"]
    return next((name for name in names if importlib.util.find_spec(name)), None)


@cache
def _api() -> Any:
    api = importlib.import_module(f"{_module()}._api")
    if "NIXL_LOG_LEVEL" not in os.environ:
        # Lines about every agent, on the process's output.
        logging.getLogger("nixl").setLevel(logging.WARNING)
    return api


@cache
def _rdma() -> bool:
    return any(os.access(device, os.R_OK | os.W_OK) for device in glob.glob("/dev/infiniband/uverbs*"))


def _transports(host: str) -> str:
    """UCX's setting, which UCX_TLS and UCX_NET_DEVICES override.

    Over TCP it listens, on every interface if one lets it, and whoever connects can read and write the process's
    memory. So there is no TCP with RDMA, and else TCP is on the one interface where this rank listens too.
    """
    return "TLS=^tcp" if _rdma() else f"NET_DEVICES={_interface(host)}"


def _interface(host: str) -> str:
    import psutil  # noqa: PLC0415 - ranks without this channel run without it

    address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]
    for name, known in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in known):
            return name
    raise LinkBroken(f"no interface of this host has the address {host}")


@contextmanager
def _told() -> Iterator[None]:
    """Turn every error of NIXL into LinkBroken."""
    try:
        yield
    except LinkBroken:
        raise
    except Exception as error:
        raise LinkBroken(f"nixl: {type(error).__name__}: {error}") from error
