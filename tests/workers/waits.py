"""Counts operations that would make the host wait for a GPU, on tensors of any device."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Reading a value waits for all that was launched before.
_READS = {"item", "tolist", "cpu", "nonzero", "__bool__", "__int__", "__float__", "numpy", "masked_select"}


class Waits(TorchFunctionMode):
    """While it is open, `seen` counts, by name, reads of tensors and copies for which the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _READS or (name == "__getitem__" and _is_mask(args[1])):
            self.seen[name] += 1
        elif name in ("tensor", "as_tensor") and kwargs.get("device") is not None:
            self.seen["tensor on a device"] += 1
        elif name == "to" and _names_device(args[1:], kwargs) and not kwargs.get("non_blocking"):
            self.seen["to"] += 1
        return func(*args, **kwargs)


def _names_device(args: tuple[object, ...], kwargs: dict[str, object]) -> bool:
    return kwargs.get("device") is not None or any(isinstance(a, torch.device | str) for a in args)


def _is_mask(index: object) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool
