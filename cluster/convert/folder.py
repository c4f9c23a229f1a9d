"""Destination folders that appear complete or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.convert.errors import ConvertError
from workers.model.files import INDEX, MANIFEST


@contextmanager
def new_folder(source: Path, destination: Path) -> Iterator[Path]:
    """A folder to fill, which has all files of the source except its weights; it becomes `destination` at the end."""
    if destination.exists():
        raise ConvertError(f"{destination} exists already; give a folder that does not")
    partial = destination.with_name(f".{destination.name}.partial")
    if partial.exists():
        raise ConvertError(f"{partial} is left from a conversion that was cut short, or still running; delete it")
    try:
        partial.mkdir(parents=True)
        for path in source.iterdir():
            if path.is_file() and path.suffix != ".safetensors" and path.name not in (INDEX, MANIFEST):
                shutil.copy2(path, partial)
        yield partial
        partial.rename(destination)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
