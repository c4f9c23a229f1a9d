"""Selects the files of a checkpoint that are served: its description, then its weights. Pure."""

import json

from cluster.fetch.errors import FetchError
from workers.model.files import INDEX, MANIFEST, SINGLE

CONFIG = "config.json"
# Routers need only these; a worker also needs the files that the index or the manifest names.
DESCRIPTION = (
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    INDEX,
    MANIFEST,
)


def weight_names(index: bytes | None, manifest: bytes | None) -> list[str]:
    """Names of the files with weights, by the index or the pre-sharded copy's manifest; FetchError if unreadable."""
    try:
        if manifest is not None:
            names = set(json.loads(manifest)["files"])
        elif index is not None:
            names = set(json.loads(index)["weight_map"].values())
        else:
            names = {SINGLE}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        which = INDEX if manifest is None else MANIFEST
        raise FetchError(f"model: {which} can't be read: {error!r}; upload the checkpoint again") from error
    for name in names:
        # A name that leads out of the cache's folder could overwrite other files.
        if not isinstance(name, str) or "/" in name or name.startswith("."):
            raise FetchError(f"model: the checkpoint's index names {name!r}, which is no plain file name; refused")
    return sorted(names)
