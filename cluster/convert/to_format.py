"""Quantizes a plain checkpoint, shard by shard."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.convert.errors import ConvertError
from cluster.convert.folder import new_folder
from cluster.convert.progress import Tell, silent
from cluster.convert.quantize import FP8_BLOCK, INT4_GROUP, Scheme, dequantize, quantize, quantized_tensors
from cluster.convert.writer import Promised, ShardWriter
from workers.model.config import LingConfig
from workers.model.files import INDEX, WeightError, weight_map
from workers.model.load_plan import check
from workers.model.loader import DTYPES, FLOATS, Read
from workers.model.released import is_quantized
from workers.model.verify import verify
from workers.model.weights import Checkpoint

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


@dataclass(slots=True)
class LayerError:
    """The error of a layer's quantized matrices. worst: the tensor with the largest relative error."""

    matrices: int = 0
    signal: float = 0.0
    noise: float = 0.0
    worst: str = ""
    worst_rms: float = -1.0

    @property
    def relative_rms(self) -> float:
        """The root mean square of the error over that of the weights."""
        return float((self.noise / self.signal) ** 0.5) if self.signal else 0.0

    def add(self, name: str, weight: Tensor, rounded: Tensor) -> None:
        """Count one matrix."""
        signal, noise = float(weight.square().sum()), float((weight - rounded).square().sum())
        self.matrices += 1
        self.signal += signal
        self.noise += noise
        rms = (noise / signal) ** 0.5 if signal else 0.0
        if rms > self.worst_rms:
            self.worst, self.worst_rms = name, rms


@dataclass(slots=True)
class Report:
    """Bytes of weights before and after, and the error of each layer."""

    before: int = 0
    after: int = 0
    layers: dict[int, LayerError] = field(default_factory=lambda: defaultdict(LayerError))


@dataclass(frozen=True, slots=True)
class _Step:
    """A tensor of the source and the tensors that it becomes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    module: str | None
    outputs: tuple[Promised, ...]


def to_format(scheme: Scheme, source: Path, destination: Path, progress: Tell = silent) -> Report:
    """Write a quantized copy. The source is verified first: a copy of damage would have right checksums.

    ConvertError, ModelConfigError or WeightError if the source can't be converted; then nothing is left behind.
    """
    config = LingConfig.load(source, {})
    if config.quantization.method != "none":
        raise ConvertError(f"{source} is quantized already ({config.quantization.method}); convert from plain weights")
    check(source, config)
    with closing(Checkpoint(source)) as checkpoint, new_folder(source, destination) as folder:
        shards = _plan(scheme, checkpoint, source)
        verify(source, progress=lambda at: progress("verifying", at.done, at.total))
        report = Report()
        report.before = sum(s.bytes for steps in shards.values() for s in steps)
        report.after = sum(p.bytes for steps in shards.values() for s in steps for p in s.outputs)
        done = 0
        for file, steps in shards.items():
            with ShardWriter(folder / file, [p for s in steps for p in s.outputs]) as writer:
                for step in steps:
                    for tensor in _convert(scheme, checkpoint, step, report):
                        writer.write(tensor)
                    done += step.bytes
                    progress("converting", done, report.before)
        names = {p.name: file for file, steps in shards.items() for s in steps for p in s.outputs}
        index = {"metadata": {"total_size": report.after}, "weight_map": names}
        (folder / INDEX).write_text(json.dumps(index, indent=2))
        modules = [s.module for steps in shards.values() for s in steps if s.module is not None]
        others = [s.name.removesuffix(".weight") for steps in shards.values() for s in steps if _is_plain_linear(s)]
        raw = json.loads((source / "config.json").read_bytes())
        raw["quantization_config"] = _quantization_config(scheme, modules, others)
        (folder / "config.json").write_text(json.dumps(raw, indent=1))
    return report


def _plan(scheme: Scheme, checkpoint: Checkpoint, source: Path) -> dict[str, list[_Step]]:
    """What each file's tensors become, in their order in the file."""
    shards: dict[str, list[_Step]] = defaultdict(list)
    for name, file in weight_map(source).items():
        entry = checkpoint.entry(name)
        if entry is None:
            raise WeightError(checkpoint.missing(name))
        module, _, suffix = name.rpartition(".")
        outputs: tuple[Promised, ...] = (Promised(name, entry.dtype, entry.shape),)
        chosen = suffix == "weight" and len(entry.shape) == 2 and is_quantized(scheme, module)
        if chosen:
            if entry.dtype not in FLOATS:
                raise ConvertError(f"{name} is stored as {entry.dtype}; convert from plain weights")
            shape = (entry.shape[0], entry.shape[1])
            if scheme == "int4" and shape[1] % INT4_GROUP:
                raise ConvertError(f"{name}: its {shape[1]} inputs are no multiple of the group of {INT4_GROUP}")
            outputs = tuple(
                Promised(f"{module}.{s.suffix}", s.dtype, s.shape) for s in quantized_tensors(scheme, shape)
            )
        elif entry.dtype not in DTYPES:
            raise ConvertError(f"{name} is stored as {entry.dtype}, which is not served")
        shards[file].append(_Step(name, entry.dtype, entry.shape, entry.bytes, module if chosen else None, outputs))
    for steps in shards.values():
        steps.sort(key=lambda s: _start(checkpoint, s.name))
    if not any(s.module for steps in shards.values() for s in steps):
        raise ConvertError(f"{source} has no tensors that {scheme} quantizes")
    return dict(sorted(shards.items()))


def _start(checkpoint: Checkpoint, name: str) -> int:
    entry = checkpoint.entry(name)
    assert entry is not None
    return entry.start


def _convert(scheme: Scheme, checkpoint: Checkpoint, step: _Step, report: Report) -> Iterator[Tensor]:
    dtype = torch.float32 if step.module is not None else DTYPES[step.dtype]
    tensor = torch.empty(step.shape, dtype=dtype)
    checkpoint.fill(Read(tensor, step.name, step.shape, tuple((0, n) for n in step.shape)))
    if step.module is None:
        yield tensor
        return
    if not torch.isfinite(tensor).all():
        raise ConvertError(f"{step.name} holds values that are not finite")
    made = quantize(scheme, tensor)
    found = _LAYER.match(step.name)
    assert found is not None
    report.layers[int(found[1])].add(step.name, tensor, dequantize(scheme, made))
    yield from made


def _is_plain_linear(step: _Step) -> bool:
    return step.module is None and len(step.shape) == 2 and not step.name.endswith("word_embeddings.weight")


def _quantization_config(scheme: Scheme, modules: list[str], others: list[str]) -> dict[str, Any]:
    """The config's description of the format, as in released checkpoints. others: linears that stay plain."""
    if scheme == "fp8":
        return {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
            "modules_to_not_convert": others,
        }
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": INT4_GROUP,
        "dynamic": False,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": others,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": None,
                "output_activations": None,
            }
        },
    }
