"""Opens a worker's disk tier, with the files that an earlier worker left."""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

from workers.cache.cache import PrefixCache
from workers.cache.disk import Place
from workers.cache.disk_folder import DiskFolder, Found
from workers.config import WorkerConfig
from workers.model.config import LingConfig
from workers.sizes import layout_of

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Disk:
    """An open disk tier. foreign, damaged: the numbers of files that were found and are not used, as in `Left`."""

    folder: DiskFolder
    place: Place
    foreign: int
    damaged: int

    def tend(self, used: Iterable[str], room: int) -> tuple[Found, ...]:
        """Note which files were used, and then as `DiskFolder.tidy`; OSError if the folder can't be used."""
        for file in used:
            self.folder.use(file)
        return self.folder.tidy(self.place, room)

    def close(self) -> None:
        """Release the folder for another worker."""
        self.folder.close()


def open_disk(config: WorkerConfig, model: LingConfig, weights_id: str, cache: PrefixCache) -> Disk | None:
    """Open the disk tier; None if the settings have none. OSError if its folder can't be used."""
    if config.cache_disk_dir is None or not cache.budget.disk_bytes:
        return None
    folder = DiskFolder(config.cache_disk_dir, config.tp, cache.budget.disk_ttl_s)
    place = folder.place(weights_id, layout_of(config, model), config.cache_state_dtype)
    left = folder.look(place)
    cache.open_disk(place, left, time.monotonic())
    if left.foreign or left.damaged:
        _LOG.warning(
            "%s: %d snapshots of other weights or layouts are not used, %d damaged ones were erased",
            folder.path, len(left.foreign), left.damaged,
        )  # fmt: skip
    return Disk(folder, place, len(left.foreign), left.damaged)
