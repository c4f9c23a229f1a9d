"""Compares the time and memory of loading weights with ours and with `safetensors.torch.load_file`.

`python -m benchmarks.loading` writes a synthetic checkpoint of over 3 GB to a temporary folder, reads it in new
processes and prints a table. All files are in the page cache by then, so memory and not the disk is the limit.
`load_file` only maps its files, so the row "load_file" includes a copy of each tensor to private memory, as ours makes
it. The row "verified" reads all files once more before it loads, as with `verify: true`. On a busy machine compare CPU
seconds. The peak is of a process's private memory (RssAnon), which leaves out mapped files.
"""

import argparse
import json
import multiprocessing
import tempfile
import threading
import time
from collections import defaultdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cluster.convert.writer import Promised, ShardWriter
from workers.collectives import Collectives, Solo
from workers.model.config import LingConfig
from workers.model.files import INDEX, weight_map
from workers.model.ling import LingModel
from workers.model.load_plan import rank_reads
from workers.model.loader import DTYPES, Loader, Read
from workers.model.synthetic import Synthetic
from workers.model.verify import verify
from workers.model.weights import Checkpoint

_TP = 4
_MB = 1e6
CONFIG: dict[str, Any] = {
    "architectures": ["BailingMoeV2_5ForCausalLM"],
    "model_type": "bailing_hybrid",
    "torch_dtype": "bfloat16",
    "vocab_size": 32768,
    "hidden_size": 2048,
    "intermediate_size": 4096,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "head_dim": 128,
    "layer_group_size": 4,
    "group_norm_size": 4,
    "q_lora_rank": 512,
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "partial_rotary_factor": 0.5,
    "rope_theta": 6000000.0,
    "max_position_embeddings": 8192,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "num_shared_experts": 1,
    "moe_intermediate_size": 1024,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "rms_norm_eps": 1e-06,
    "eos_token_id": 1,
}


def write_checkpoint(raw: dict[str, Any], folder: Path, shards: int) -> int:
    """Write a checkpoint of synthetic weights to an existing folder; returns the bytes of its weights.

    raw: the content of its config.json. shards: number of safetensors files.
    """
    (folder / "config.json").write_text(json.dumps(raw))
    config = LingConfig.load(folder, {})
    source = Synthetic(config.quantization)
    shapes = {read.name: read.shape for read in rank_reads(config, source, 0, 1).reads}
    tensors = [Promised(n, stored.dtype, shape) for n, shape in shapes.items() if (stored := source.find(n))]
    each = sum(t.bytes for t in tensors) / shards
    files: list[list[Promised]] = [[]]
    for tensor in tensors:
        if sum(t.bytes for t in files[-1]) >= each:
            files.append([])
        files[-1].append(tensor)
    names = {}
    for i, held in enumerate(files):
        file = f"model-{i + 1:05}-of-{len(files):05}.safetensors"
        with ShardWriter(folder / file, held) as writer:
            for tensor in held:
                out = torch.empty(tensor.shape, dtype=DTYPES[tensor.dtype])
                source.fill(Read(out, tensor.name, tensor.shape, tuple((0, n) for n in tensor.shape)))
                writer.write(out)
                names[tensor.name] = file
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))
    return sum(t.bytes for t in tensors)


class Seat(Solo):
    """A rank of a group without its peers, which loading does not need."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


class _Counting(Checkpoint):
    """A checkpoint that counts the bytes that are read from it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.bytes = 0
        self._count = threading.Lock()

    def fill(self, read: Read) -> int:
        count = super().fill(read)
        with self._count:
            self.bytes += count
        return count


def _private_bytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


class _Peak:
    """Measures, while it is open, by how many bytes private memory grows at its peak; it looks every 5 ms."""

    def __enter__(self) -> "_Peak":
        self._base = self.bytes = _private_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.bytes = max(self.bytes, _private_bytes())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.bytes = max(self.bytes, _private_bytes()) - self._base


def _ours(folder: Path, rank: int, tp: int) -> dict[str, float]:
    group: Collectives = Seat(rank, tp)
    model = LingModel(LingConfig.load(folder, {}), group, torch.device("cpu"), torch.bfloat16)
    with _Peak() as peak:
        start, cpu = time.perf_counter(), time.process_time()
        source = _Counting(folder)
        loader = Loader(source)
        model.load(loader)
        done = loader.run()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        source.close()
    return {"seconds": seconds, "cpu": cpu, "weights": done.total, "read": source.bytes, "peak": peak.bytes}


def _verified(folder: Path, rank: int, tp: int) -> dict[str, float]:
    start, cpu = time.perf_counter(), time.process_time()
    verify(folder, rank, tp)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    found = _ours(folder, rank, tp)
    return found | {"seconds": found["seconds"] + seconds, "cpu": found["cpu"] + cpu}


def _load_file(folder: Path, rank: int, tp: int) -> dict[str, float]:
    files = sorted(set(weight_map(folder).values()))
    with _Peak() as peak:
        start, cpu = time.perf_counter(), time.process_time()
        tensors = [{n: t.clone() for n, t in load_file(folder / f).items()} for f in files]
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    size = sum(t.nbytes for held in tensors for t in held.values())
    return {"seconds": seconds, "cpu": cpu, "weights": size, "read": size, "peak": peak.bytes}


_HOW = {"ours": _ours, "load_file": _load_file, "verified": _verified}


def _process(pipe: Connection, how: str, folder: Path, rank: int, tp: int) -> None:
    torch.set_num_threads(1)
    pipe.send(_HOW[how](folder, rank, tp))


def measure(how: str, folder: Path, rank: int = 0, tp: int = 1) -> dict[str, float]:
    """Load once in a new process; returns its seconds, CPU seconds, bytes of weights, bytes read and peak bytes."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_process, args=(there, how, folder, rank, tp), daemon=True)
    process.start()
    there.close()
    try:
        return dict(here.recv())
    finally:
        process.join()


def main() -> None:
    """Measure all ways to load and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--experts", type=int, default=CONFIG["num_experts"], help="number of experts; fewer make a smaller checkpoint"
    )
    raw = CONFIG | {"num_experts": parser.parse_args().experts}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        size = write_checkpoint(raw, folder, shards=4)
        print(f"wrote {size / 1e9:.2f} GB in 4 shards in {time.perf_counter() - start:.1f} s\n")
        print(f"{'':>14} {'seconds':>8} {'GB/s':>6} {'CPU s':>6} {'weights GB':>11} {'peak beyond weights MB':>23}")
        taken: dict[str, list[float]] = defaultdict(list)
        for turn in (*_HOW, *_HOW):
            found = measure(turn, folder)
            _row(turn, found)
            taken[turn].append(found["seconds"])
        ours, load_file, verified = (min(taken[how]) for how in _HOW)
        print(
            f"\nthe best of each: load_file {load_file / ours:.2f} times ours, verified {verified / ours:.2f} times\n"
        )
        ranks = [measure("ours", folder, rank, _TP) for rank in range(_TP)]
        print()
        for rank, found in enumerate(ranks):
            _row(f"rank {rank} of {_TP}", found)
        read = sum(found["read"] for found in ranks)
        print(f"\n{_TP} ranks read {read / 1e9:.3f} GB together, {read / size:.4f} times what is stored")
        print("(what exceeds 1 are routers, norms and low-rank projections, which every rank holds)")


def _row(name: str, found: dict[str, float]) -> None:
    size, peak = found["weights"], found["peak"]
    print(
        f"{name:>14} {found['seconds']:>8.2f} {size / found['seconds'] / 1e9:>6.2f} {found['cpu']:>6.2f}"
        f" {size / 1e9:>11.3f} {(peak - size) / _MB:>23.0f}"
    )


if __name__ == "__main__":
    main()
