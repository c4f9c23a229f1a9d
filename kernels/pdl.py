"""Overlapping launches: a kernel's programs begin while those of the previous kernel end.

This is programmatic dependent launch, which needs compute capability 9.0 or later.

`LING_PDL=1` asks for it. A kernel that calls `after_previous` before it touches memory may be launched with `LAUNCH`:
what it does before then hides behind its predecessor, and so does the launch. All else stays as if it were not there.
"""

import os

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


def _asked() -> bool:
    """Whether LING_PDL asks for it; Triton's interpreter has no launches that could overlap."""
    choice = os.environ.get("LING_PDL", "")
    if choice not in ("", "0", "1"):
        raise ValueError(f"LING_PDL must be 0, 1 or unset, not {choice!r}")
    return choice == "1" and not triton.knobs.runtime.interpret


# For `kernel[grid](..., **LAUNCH)`.
LAUNCH: dict[str, bool] = {"launch_pdl": True} if _asked() else {}
_ON = tl.constexpr(bool(LAUNCH))


@triton.jit
def after_previous() -> None:
    """Inside kernels: let the next kernel's programs begin, then wait until all earlier kernels have ended.

    Each kernel waits for the previous one, so when that has ended, all earlier ones have too, and their results are
    visible.
    """
    if _ON:
        gdc_launch_dependents()
        gdc_wait()
