"""Reads the weights' formats from config.json's `quantization_config`. The files show which tensor is in which format.

Without torch.
"""

from dataclasses import dataclass
from typing import Any, Literal

Method = Literal["none", "fp8", "channel fp8", "int4", "awq"]
_INSTEAD = "`ling convert` makes fp8 and int4 of plain weights"


class QuantizationError(ValueError):
    """A quantization scheme is not served; the message names the key."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """The format of the quantized modules; for a mixed checkpoint, the first format.

    block: rows and columns that share a scale (fp8). group: inputs that share a scale (4-bit).
    """

    method: Method = "none"
    block: tuple[int, int] = (128, 128)
    group: int = 32

    @classmethod
    def read(cls, raw: Any) -> "Quantization":
        """Read `quantization_config`; None if there is none. QuantizationError if it can't be served."""
        if raw is None:
            return cls()
        if not isinstance(raw, dict):
            raise QuantizationError(f"quantization_config must be an object, found {raw!r}")
        method = raw.get("quant_method")
        if method == "fp8":
            return cls("fp8", _block(raw))
        if method == "compressed-tensors":
            return _of_groups(raw)
        if method == "awq":
            known = raw | {"version": str(raw.get("version", "gemm")).lower()}
            _expect(known, "quantization_config", {"bits": 4, "version": "gemm", "zero_point": True})
            return cls("awq", group=_size(raw, "group_size", 128))
        raise QuantizationError(
            f"quantization_config.quant_method {method!r} is not served; served are fp8, compressed-tensors and awq; "
            f"{_INSTEAD}"
        )


def _block(raw: dict[str, Any]) -> tuple[int, int]:
    _expect(raw, "quantization_config", {"fmt": "e4m3"})
    block = raw.get("weight_block_size", [128, 128])
    if not isinstance(block, list) or len(block) != 2 or not all(isinstance(n, int) and n > 0 for n in block):
        raise QuantizationError(f"quantization_config.weight_block_size must be two sizes, found {block!r}")
    return block[0], block[1]


def _size(raw: dict[str, Any], key: str, default: int) -> int:
    size = raw.get(key, default)
    if not isinstance(size, int) or size < 1:
        raise QuantizationError(f"quantization_config: {key} must be a positive integer, found {size!r}")
    return size


def _of_groups(raw: dict[str, Any]) -> Quantization:
    """Read compressed-tensors' groups of modules."""
    groups = raw.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise QuantizationError("quantization_config.config_groups must name at least one group")
    found = []
    for name, group in groups.items():
        where = f"quantization_config.config_groups.{name}.weights"
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            raise QuantizationError(f"{where} must be an object, found {weights!r}")
        scheme = group.get("format") or raw.get("format")
        if scheme == "pack-quantized":
            _expect(weights, where, {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"})
            found.append(Quantization("int4", group=_size(weights, "group_size", 32)))
        elif scheme == "float-quantized":
            _expect(weights, where, {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"})
            found.append(Quantization("channel fp8"))
        else:
            raise QuantizationError(
                f"quantization_config.format {scheme!r} is not served; served are pack-quantized and "
                f"float-quantized; {_INSTEAD}"
            )
    return found[0]


def _expect(raw: dict[str, Any], where: str, wanted: dict[str, Any]) -> None:
    for key, value in wanted.items():
        if raw.get(key, value) != value:
            raise QuantizationError(f"{where}.{key} {raw[key]!r} is not served, only {value!r} is")
