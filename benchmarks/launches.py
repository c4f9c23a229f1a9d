"""Counts what a decode step launches, by part. The model is run on meta tensors, so no kernel runs.

It counts Triton kernels and the torch operations that are more than views, on one rank, without collectives. A torch
operation counts once, although a library may launch two kernels for it.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.decode_parts import parts
from kernels import dispatch
from workers.collectives.base import Solo
from workers.model.batch import Batch
from workers.model.config import LingConfig
from workers.model.ling import LingModel, make_caches
from workers.model.loader import Loader, Read
from workers.model.synthetic import Synthetic

_PAGE = 64
_NOWHERE = torch.device("meta")
# Operations that launch nothing, besides views, whose results share their input's memory.
_FREE = {"empty", "empty_like", "empty_strided", "new_empty"}


class _Seat(Solo):
    """Rank 0 of a group whose other ranks do not exist."""

    def __init__(self, size: int) -> None:
        self.size = size


class _Unread(Synthetic):
    """Weights of any shape whose values are never filled in."""

    def fill(self, read: Read) -> int:
        return 0


def _memory(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's own
    """Counts torch operations that launch something, by name."""

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        given = [a for a in args if isinstance(a, torch.Tensor)]
        # An operation on host tensors launches nothing on the device.
        if isinstance(result, torch.Tensor) and all(t.device == _NOWHERE for t in (result, *given)):
            views = not func._schema.is_mutable and any(_memory(result) == _memory(t) for t in given)
            self._seen[name] += not views and name not in _FREE
        return result


@contextmanager
def recorded() -> Iterator[Counter[str]]:
    """Count, by name, what is launched while it is open. Operations take their Triton kernels, but none runs."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    seen: Counter[str] = Counter()

    def note(self: Any, *args: Any, grid: Any, **kwargs: Any) -> None:
        seen[self.fn.__name__] += 1

    kinds = (InterpretedFunction, JITFunction)
    runs = [kind.run for kind in kinds]
    forced, dispatch.FORCED = dispatch.FORCED, "triton"
    for kind in kinds:
        kind.run = note
    try:
        with _Operations(seen):
            yield seen
    finally:
        dispatch.FORCED = forced
        for kind, run in zip(kinds, runs, strict=True):
            kind.run = run


def step_launches(config: LingConfig, tp: int, batch: int = 1, context: int = 1024) -> dict[str, Counter[str]]:
    """Count the launches of a decode step in bf16 on one of `tp` ranks, by part of `decode_parts.parts`.

    "all" is a whole forward pass without head and sampling. context: tokens of each sequence after the step.
    """
    with torch.inference_mode(), recorded() as seen:
        model = LingModel(config, _Seat(tp), _NOWHERE, torch.bfloat16)
        loader = Loader(_Unread(config.quantization))
        model.load(loader)
        loader.run()
        each = -(-context // _PAGE)
        caches = make_caches(config, tp, batch * each, _PAGE, batch, _NOWHERE, torch.bfloat16)
        pages = torch.empty(batch, each, dtype=torch.int32, device=_NOWHERE)
        runs = dict(parts(model, caches, context, pages, each))
        at = torch.empty(batch, dtype=torch.int64, device=_NOWHERE)

        def whole() -> None:
            starts, counts = (context - 1,) * batch, (1,) * batch
            table = torch.empty(batch, each, dtype=torch.int32, device=_NOWHERE)
            model.forward(Batch(at, at, at, starts, counts, table), caches)

        found: dict[str, Counter[str]] = {}
        for name, run in (*runs.items(), ("all", whole)):
            # The first run also creates what later runs reuse.
            run()
            seen.clear()
            run()
            found[name] = Counter(seen)
        return found
