"""Keeps a Serve replica's internal port off foreign networks."""

from typing import Any

import ray
from ray.serve._private import replica


def close_side_door() -> None:
    """Bind this replica's inter-deployment gRPC port to the node's own address. Call it in a replica's `__init__`.

    Serve 2.60 binds it to every interface (`Replica._on_initialized`), without a token, and unpickles what
    arrives: on a laptop, code of whoever is on the same network. On a node with a loopback address nobody
    else reaches it now. The name is private to Serve; the release of Ray is pinned.
    """
    bind = replica.add_port_to_grpc_server
    host = ray.util.get_node_ip_address()

    def on_node_address(server: Any, address: str) -> int:
        port: int = bind(server, address.replace("[::]", f"[{host}]" if ":" in host else host))
        return port

    replica.add_port_to_grpc_server = on_node_address
