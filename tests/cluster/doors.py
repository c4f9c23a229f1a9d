"""Connects to a running cluster's ports as a stranger would, without key or token."""

import socket
from collections.abc import Iterable

import grpc
import httpx
import psutil

# One method of each gRPC service that Ray and Serve run, none of which may answer.
METHODS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.ReporterService/HealthCheck",
    "/ray.serve.ASGIService/HandleRequestWithRejection",
)
_NONCE = 32
_PATIENCE_S = 20.0


def listening(family: Iterable[psutil.Process]) -> list[tuple[str, int]]:
    """(address, port) of every listening socket of these processes."""
    found = [c.laddr for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    return [(at.ip, at.port) for at in found]


def http_get(port: int) -> httpx.Response | None:
    """The answer to GET /; None if the port does not speak HTTP."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/", timeout=_PATIENCE_S, trust_env=False)
    except httpx.TransportError:
        return None


def grpc_codes(port: int) -> dict[str, str]:
    """The gRPC status of a call without a token, by method."""
    codes = {}
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for method in METHODS:
            try:
                channel.unary_unary(method)(b"", timeout=_PATIENCE_S)
                codes[method] = "OK"
            except grpc.RpcError as error:
                codes[method] = error.code().name
    return codes


def bytes_for_garbage(port: int) -> int:
    """The number of bytes that a connection sends to a client that does not prove the secret."""
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S) as stranger:
        stranger.sendall(b"\xff" * 4096)
        received = 0
        try:
            while data := stranger.recv(4096):
                received += len(data)
        except ConnectionResetError:
            pass
        return received
