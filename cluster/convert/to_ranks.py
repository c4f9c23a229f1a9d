"""Pre-sharded copies: each rank's slices in one file, in the order the rank asks for them."""

import json
from contextlib import closing
from pathlib import Path

import torch

from cluster.convert.errors import ConvertError
from cluster.convert.folder import new_folder
from cluster.convert.progress import Tell, silent
from cluster.convert.writer import Promised, ShardWriter
from workers.model.config import LingConfig
from workers.model.files import MANIFEST
from workers.model.load_plan import check, rank_reads, with_mtp
from workers.model.loader import DTYPES, Loader, Read
from workers.model.sharded import is_sharded, rank_file, slice_name
from workers.model.verify import verify
from workers.model.weights import Checkpoint


def to_ranks(tp: int, source: Path, destination: Path, progress: Tell = silent) -> int:
    """Write a copy for `tp` ranks; the bytes of its weights. The source is verified first, as by `to_format`.

    ConvertError, ModelConfigError or WeightError if the source can't be converted; then nothing is left behind.
    """
    if is_sharded(source):
        raise ConvertError(f"{source} is sharded already; convert from the checkpoint it was made from")
    config = LingConfig.load(source, {})
    config.check_tp(tp)
    check(source, config, tp)
    with closing(Checkpoint(source)) as checkpoint, new_folder(source, destination) as folder:
        whole = with_mtp(config, checkpoint)
        loaders = [rank_reads(whole, checkpoint, rank, tp) for rank in range(tp)]
        plans = [_slices(checkpoint, loader) for loader in loaders]
        total = sum(p.bytes for plan in plans for p, _ in plan)
        verify(source, progress=lambda at: progress("verifying", at.done, at.total))
        done = 0
        for rank, plan in enumerate(plans):
            with ShardWriter(folder / rank_file(rank, tp), [p for p, _ in plan]) as writer:
                for promised, read in plan:
                    out = torch.empty(promised.shape, dtype=DTYPES[promised.dtype])
                    checkpoint.fill(Read(out, read.name, read.shape, read.spans))
                    writer.write(out)
                    done += promised.bytes
                    progress("converting", done, total)
        files = [rank_file(rank, tp) for rank in range(tp)]
        found = {name: checkpoint.entry(name) for name in checkpoint.names()}
        tensors = {name: [entry.dtype, entry.shape] for name, entry in found.items() if entry is not None}
        (folder / MANIFEST).write_text(json.dumps({"tp": tp, "files": files, "tensors": tensors}))
    return total


def _slices(checkpoint: Checkpoint, loader: Loader) -> list[tuple[Promised, Read]]:
    found = []
    for read in loader.reads:
        entry = checkpoint.entry(read.name)
        assert entry is not None
        shape = tuple(b - a for a, b in read.spans)
        found.append((Promised(slice_name(read.name, read.spans), entry.dtype, shape), read))
    return found
