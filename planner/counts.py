"""The size of a model: parameters and bytes by kind, active parameters, and the size of its files."""

from collections.abc import Callable

from planner.model import Model
from planner.tensors import KINDS, Kind, Tensor, tensors


def parameters(model: Model) -> dict[Kind, int]:
    """Parameters by kind; those of the MTP layers that the config declares are under "MTP"."""
    return _sum(tensors(model, mtp=True), lambda tensor: tensor.parameters)


def main_parameters(model: Model) -> int:
    """The number of parameters without the MTP layers."""
    return sum(tensor.parameters for tensor in tensors(model, mtp=False))


def active_parameters(model: Model) -> int:
    """The number of parameters that one token uses: all without the MTP layers and without experts not chosen."""
    chosen, experts = model.config.num_experts_per_tok, model.config.num_experts
    return sum(
        tensor.parameters * chosen // experts if tensor.routed else tensor.parameters
        for tensor in tensors(model, mtp=False)
    )


def weight_bytes(model: Model, mtp: bool, tp: int = 1) -> dict[Kind, int]:
    """Bytes that each of `tp` ranks holds in memory, by kind; with `mtp` also the MTP layers."""
    return _sum(tensors(model, mtp), lambda tensor: tensor.rank_bytes(model.scheme, tp))


def checkpoint_bytes(model: Model) -> int:
    """Bytes of a release's safetensors files, tensors and headers.

    A header describes each tensor as `"name":{"dtype":"BF16","shape":[..],"data_offsets":[a,b]},`; the count assumes
    offsets of ten digits, as in files of gigabytes.
    """
    total = 0
    for tensor in tensors(model, model.has_mtp):
        entries = tensor.stored(model.scheme)
        frame = sum(
            len(f'".{entry.suffix}":{{"dtype":"{entry.dtype}","shape":[{",".join(map(str, entry.shape))}],')
            + len('"data_offsets":[,]},')
            + 20
            for entry in entries
        )
        size = sum(entry.bytes for entry in entries)
        total += tensor.copies * (size + frame) + len(entries) * sum(map(len, tensor.modules()))
    return total


def _sum(every: tuple[Tensor, ...], of: Callable[[Tensor], int]) -> dict[Kind, int]:
    total = dict.fromkeys(KINDS, 0)
    for tensor in every:
        total[tensor.kind] += of(tensor)
    return {kind: count for kind, count in total.items() if count}
