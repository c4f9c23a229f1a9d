"""Finds values that no checkpoint contains on purpose, and which show damage without checksums."""

import torch
from torch import Tensor

# Scales of a block or channel of 8-bit floats, or of a group of 4-bit integers. Quantizers give even zeros a scale
# above 0.
_ABOVE_ZERO = ("weight_scale_inv", "weight_scale")
# AWQ's 16-bit scales may be rounded down to 0.
_NOT_NEGATIVE = ("scales",)
SCALES = (*_ABOVE_ZERO, *_NOT_NEGATIVE)


def fault(name: str, values: Tensor) -> str | None:
    """What is impossible about a tensor's values, or a part of them; None if nothing is. name: its full name."""
    if values.dtype == torch.float8_e4m3fn:
        # The highest codes, with and without the sign bit, are NaN.
        found = values.view(torch.int8).amax() == 0x7F or values.view(torch.uint8).amax() == 0xFF
        return "holds NaN" if found else None
    if not values.is_floating_point() or not values.numel():
        return None
    least, most = (float(v) for v in torch.aminmax(values))
    # The minimum and maximum of values with a NaN are NaN.
    if not abs(least) + abs(most) < float("inf"):
        return "holds NaN or infinity"
    suffix = name.rpartition(".")[2]
    if (suffix in _ABOVE_ZERO and least <= 0) or (suffix in _NOT_NEGATIVE and least < 0):
        return f"holds a scale of {least:g}"
    return None
