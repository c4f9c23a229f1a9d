"""Starts a worker with weights from a live worker that holds the same ones, else from storage."""

import asyncio
import dataclasses
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from wire.protocol import WorkerInfo
from workers.config import Lender, WorkerConfig
from workers.leader.leader import Leader
from workers.leader.ranks import Launch, WorkerLost
from workers.model.config import LingConfig
from workers.model.files import weights_id
from workers.sizes import layout_of, wants_drafts

_LOG = logging.getLogger(__name__)
Make = Callable[[WorkerConfig], tuple[Leader, Launch]]


async def start_leader(
    config: WorkerConfig,
    make: Make,
    live: Sequence[WorkerInfo] = (),
    storage: Callable[[], Awaitable[object]] | None = None,
) -> Leader:
    """Start a leader and return it.

    make: makes a leader with the settings, and the launcher of its ranks. live: returns workers that may lend their
    weights. storage: brings the weights into the folder `config.model` if needed; it is called only if no worker lends
    them.
    """
    lender = await asyncio.to_thread(find_lender, config, live)
    if lender is not None:
        try:
            return await _started(*make(dataclasses.replace(config, lender=lender)))
        except WorkerLost as error:
            _LOG.warning("no weights from %s, loading from storage: %s", lender.worker_id, error)
    if storage is not None:
        await storage()
    return await _started(*make(config))


def find_lender(config: WorkerConfig, live: Sequence[WorkerInfo]) -> Lender | None:
    """A random one of the live workers that hold the same weights in the same layout, so that several starts spread."""
    if config.load != "auto" or config.verify or not live:
        return None
    folder = Path(config.model)
    identity = weights_id(folder, version=config.version)
    model = LingConfig.load(folder, config.model_overrides)
    layouts = {layout_of(config, model)}
    if wants_drafts(config, model):
        # Only workers that have read the files know whether they hold the MTP layer.
        layouts.add(layout_of(config, dataclasses.replace(model, drafts=True)))
    alike = [
        info
        for info in live
        if info.weights_id == identity
        and info.layout in layouts
        and len(info.ranks) == config.tp
        and all(rank.device.partition(":")[0] == config.device for rank in info.ranks)
    ]
    if not alike:
        return None
    chosen = random.choice(alike)
    return Lender(chosen.worker_id, identity, tuple((rank.transfer_host, rank.transfer_port) for rank in chosen.ranks))


async def _started(leader: Leader, launch: Launch) -> Leader:
    try:
        await leader.start(launch)
    except BaseException:
        await leader.close()
        raise
    return leader
