"""Chooses the form of an operation: its Triton kernel for tensors on a GPU, its torch reference otherwise.

An operation's file holds `<op>_reference`, `<op>_triton` and `<op> = dispatch(<op>_reference, <op>_triton)`; callers
use only `<op>`. Parameters of Triton kernels are annotated `tl.tensor` or `tl.constexpr`, which is all that Triton
reads.
"""

import os
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound=Tensor)

_CHOICES = ("triton", "reference")


def _forced() -> str | None:
    """The form that LING_KERNELS forces; None leaves the choice to the tensors' device."""
    choice = os.environ.get("LING_KERNELS")
    if choice and choice not in _CHOICES:
        raise ValueError(f"LING_KERNELS must be one of {', '.join(_CHOICES)} or unset, not {choice!r}")
    return choice or None


FORCED = _forced()


def uses_triton(tensor: Tensor) -> bool:
    """Whether operations on `tensor` run as Triton kernels. On the CPU these need TRITON_INTERPRET=1 set before
    anything imports triton."""
    return tensor.is_cuda if FORCED is None else FORCED == "triton"


def dispatch(reference: Callable[Concatenate[T, P], R], kernel: Callable[..., R]) -> Callable[Concatenate[T, P], R]:
    """Make the operation from its two forms; the device of its first argument, a tensor, decides.

    kernel: takes the same arguments and may take a tuned configuration after them.
    """

    @wraps(reference)
    def operation(first: T, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if uses_triton(first):
            return kernel(first, *args, **kwargs)
        return reference(first, *args, **kwargs)

    operation.__name__ = operation.__qualname__ = reference.__name__.removesuffix("_reference")
    return operation
