"""Converts between the twin's parameters and the released tensor layout."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from training.model import Nano, Shape

_SPLIT = {"gate_up": ("gate_proj", "up_proj")}


def released(model: Nano) -> dict[str, Tensor]:
    """All tensors by their released names, in the twin's dtype."""
    out: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        for released_name, part in _parts(name, tensor.detach(), model.shape):
            out[released_name] = part.clone().contiguous()
    return out


def load(folder: Path) -> Nano:
    """Load a checkpoint in the released layout into a twin, in fp32. ValueError if it has a tensor the twin lacks."""
    raw: dict[str, Any] = json.loads((folder / "config.json").read_text())
    shape = Shape(**{key: raw[key] for key in Shape().config() if key in raw})
    model = Nano(shape)
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(file)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            for released_name, part in _parts(name, tensor, shape):
                part.copy_(tensors.pop(released_name))
    if tensors:
        raise ValueError(f"{folder}: the twin has no place for {', '.join(sorted(tensors)[:5])}")
    return model


def _parts(name: str, tensor: Tensor, shape: Shape) -> list[tuple[str, Tensor]]:
    """The released tensors, by name, that make up one of the twin's tensors, as views of it."""
    if name == "lm_head.weight":
        return [(name, tensor)]
    last = f"layers.{shape.num_hidden_layers}."
    name = name.replace("mtp.block.", last).replace("mtp.", last)
    name = "model." + name
    name = name.replace("expert_bias", "gate.expert_bias")
    if name.endswith("g_norm"):
        return [(name + ".weight", tensor)]
    stem = name.removesuffix(".weight")
    module, leaf = stem.rsplit(".", 1)
    if tensor.ndim == 3:
        out = []
        for i, expert in enumerate(tensor.unbind(0)):
            if leaf == "down":
                out.append((f"{module}.experts.{i}.down_proj.weight", expert))
            else:
                halves = zip(_SPLIT[leaf], expert.chunk(2), strict=True)
                out += [(f"{module}.experts.{i}.{half}.weight", part) for half, part in halves]
        return out
    if leaf in _SPLIT:
        return [(f"{module}.{half}.weight", part) for half, part in zip(_SPLIT[leaf], tensor.chunk(2), strict=True)]
    return [(name, tensor)]
