"""Makes the handlers of the responses API for one gateway."""

import asyncio
import tempfile
from pathlib import Path

from router.api.responses.background import Background
from router.api.responses.create import Create
from router.api.responses.folder import SharedFolder
from router.api.responses.rows import Bounds
from router.api.responses.store import ResponseStore
from router.api.responses.stored import StoredResponses
from router.api.responses.takeover import Takeover
from router.config import RouterConfig
from router.relay.gateway import Gateway
from router.relay.sessions import Sessions
from router.relay.snapshots import Snapshots
from router.store.failed import FAILED
from router.store.records import records
from router.store.sessions import SESSIONS

_FILE = "responses.sqlite3"
_SESSIONS_FILE = "sessions.sqlite3"


def keeping(gateway: Gateway) -> tuple[Create, StoredResponses, Sessions, Snapshots]:
    """Make the handlers that create responses and show stored ones, the sessions and their files.

    They close with the gateway.
    """
    config = gateway.config
    folder = None if config.data_dir is not None else SharedFolder(_run_dir(config))
    path = folder.path if folder is not None else Path(config.data_dir or "")
    table = records(config.database_url, path / _SESSIONS_FILE, SESSIONS + FAILED)
    sessions = Sessions(table, gateway.table, ttl_s=config.session_ttl_s, most=config.max_sessions)
    snapshots = Snapshots(table, gateway.table, sessions, model=config.served_model_name, keep_s=config.session_ttl_s)
    gateway.on_failed = snapshots.failed
    gateway.alongside(sessions)
    bounds = Bounds(config.max_responses, config.max_responses_bytes)
    store = ResponseStore(path / _FILE, bounds, config.database_url)
    background = Background(store)
    gateway.alongside(Takeover(gateway, store, background, sessions))

    async def close() -> None:
        await background.close()
        await snapshots.settle()
        await sessions.settle()
        await asyncio.to_thread(store.close)
        if folder is not None:
            folder.close()

    gateway.closers.append(close)
    return Create(gateway, store, background, sessions), StoredResponses(store, background), sessions, snapshots


def _run_dir(config: RouterConfig) -> Path:
    return Path(config.run_dir) if config.run_dir is not None else Path(tempfile.mkdtemp(prefix="ling-router-"))
