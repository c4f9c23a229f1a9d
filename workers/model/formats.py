"""The formats of weights in files and memory. A tensor's format follows from what the checkpoint contains.

Every matrix of the model is a stack of parts: rows and columns of checkpoint modules' `[out, in]` matrices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from kernels.device import device_of, without_fp8
from kernels.linear.quantized import Awq, BlockFp8, Matrix, PackedInt4
from workers.model.loader import DTYPES, FLOATS, Loader
from workers.model.quantization import Quantization
from workers.model.values import SCALES

WHOLE = slice(None)
Kind = Literal["plain", "block fp8", "channel fp8", "int4", "awq"]
_PACK = 8


@dataclass(frozen=True, slots=True)
class Part:
    """The rows and columns a rank owns of a module's matrix, whose whole shape is `shape`."""

    module: str
    shape: tuple[int, int]
    rows: slice = field(default_factory=lambda: WHOLE)
    cols: slice = field(default_factory=lambda: WHOLE)

    @property
    def row_span(self) -> tuple[int, int]:
        """The first row owned, and the one after the last."""
        return self.rows.indices(self.shape[0])[:2]

    @property
    def col_span(self) -> tuple[int, int]:
        """The first column owned, and the one after the last."""
        return self.cols.indices(self.shape[1])[:2]

    @property
    def size(self) -> tuple[int, int]:
        """The numbers of rows and columns owned."""
        (a, b), (c, d) = self.row_span, self.col_span
        return b - a, d - c


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how weights are stored in memory. dtype: the compute dtype."""

    loader: Loader
    quantization: Quantization
    dtype: torch.dtype
    device: torch.device


def load_matrix(target: Target, parts: Sequence[Part]) -> Matrix:
    """Load [out, in]: the parts' rows, one below the other."""
    return _load(target, [parts], stacked=False)


def load_stack(target: Target, matrices: Sequence[Sequence[Part]]) -> Matrix:
    """Load [E, out, in]: matrices of equal shape, each given by its parts."""
    return _load(target, matrices, stacked=True)


def load_plain(target: Target, part: Part) -> Tensor:
    """Load [out, in] of a matrix that no format quantizes."""
    return _Stack(target, [[part]], stacked=False).plain()


def _load(target: Target, matrices: Sequence[Sequence[Part]], stacked: bool) -> Matrix:
    kinds = {kind(target.loader, p.module): p.module for parts in matrices for p in parts}
    if len(kinds) > 1:
        told = ", ".join(f"{module} is {name}" for name, module in sorted(kinds.items()))
        target.loader.refuse(f"matrices that are used as one are in different formats: {told}")
    found = next(iter(kinds))
    stack = _Stack(target, matrices, stacked)
    if found == "plain":
        return stack.plain()
    if found == "int4":
        return stack.int4()
    if found == "awq":
        return stack.awq()
    if reason := without_fp8(device_of(torch.empty(0, device=target.device))):
        target.loader.refuse(reason)
    return stack.fp8(blocks=found == "block fp8")


def kind(loader: Loader, module: str) -> Kind:
    """A module's format, derived from its tensors; an unknown one counts as plain and is refused when it is read."""
    for suffix in ("weight_zero_point", "weight_g_idx", "g_idx"):
        if loader.find(f"{module}.{suffix}") is not None:
            loader.refuse(f"{module}.{suffix}: weights with zero points or reordered groups are not served")
    weight = loader.find(f"{module}.weight")
    if weight is None:
        if loader.find(f"{module}.weight_packed") is not None:
            return "int4"
        return "awq" if loader.find(f"{module}.qweight") is not None else "plain"
    if weight.dtype != "F8_E4M3":
        return "plain"
    if loader.find(f"{module}.weight_scale_inv") is not None:
        return "block fp8"
    if loader.find(f"{module}.weight_scale") is None:
        loader.refuse(f"{module}.weight is stored as F8_E4M3 and has neither weight_scale_inv nor weight_scale")
    return "channel fp8"


@dataclass(frozen=True, slots=True)
class _Piece:
    """The piece of a part's tensor to read. shape: of the whole tensor."""

    shape: tuple[int, ...]
    rows: slice
    cols: slice

    def size(self) -> tuple[int, int]:
        """Rows and columns read."""
        height, width = self.shape[0], self.shape[1] if len(self.shape) > 1 else 1
        return len(range(*self.rows.indices(height))), len(range(*self.cols.indices(width)))


class _Stack:
    """Matrices [E, out, in], or [out, in] unstacked, that are being loaded."""

    def __init__(self, target: Target, matrices: Sequence[Sequence[Part]], stacked: bool) -> None:
        self._target = target
        self._matrices = matrices
        self._stacked = stacked
        self._parts = matrices[0]

    def plain(self) -> Tensor:
        return self._read("weight", lambda p: _Piece(p.shape, p.rows, p.cols), self._target.dtype, FLOATS)

    def fp8(self, blocks: bool) -> BlockFp8:
        """Load any range of rows and columns of a block-quantized matrix; blocks may be partial at all edges."""
        height, width = self._target.quantization.block if blocks else (1, self._parts[0].shape[1])

        def scale(p: Part) -> _Piece:
            rows, cols = _touched(p.row_span, height), _touched(p.col_span, width)
            return _Piece((-(-p.shape[0] // height), -(-p.shape[1] // width)), slice(*rows), slice(*cols))

        def channel(p: Part) -> _Piece:
            stored = self._target.loader.find(f"{p.module}.weight_scale")
            flat = stored is not None and stored.shape is not None and len(stored.shape) == 1
            return _Piece(p.shape[:1] if flat else (p.shape[0], 1), p.rows, WHOLE)

        rows, base = [], 0
        for part in self._parts:
            of = torch.arange(*part.row_span) // height
            rows.append(of - of[:1] + base)
            base += scale(part).size()[0]
        row_block = torch.cat(rows)
        cols = torch.arange(*self._parts[0].col_span) // width
        col_block = cols - cols[:1]
        device = self._target.device
        return BlockFp8(
            self._read("weight", lambda p: _Piece(p.shape, p.rows, p.cols), torch.float8_e4m3fn, ("F8_E4M3",)),
            self._read("weight_scale_inv", scale, torch.float32, FLOATS)
            if blocks
            else self._read("weight_scale", channel, torch.float32, FLOATS),
            row_block.to(device, torch.int32),
            col_block.to(device, torch.int32),
            self._target.dtype,
            _regular(row_block, height),
            _regular(col_block, width),
        )

    def int4(self) -> PackedInt4:
        group = self._group("weight_scale", 1)
        self._check_edges(1, _PACK, group)
        return PackedInt4(
            self._read(
                "weight_packed",
                lambda p: _Piece((p.shape[0], -(-p.shape[1] // _PACK)), p.rows, _shrunk(p.col_span, _PACK)),
                torch.int32,
                ("I32",),
            ),
            self._read(
                "weight_scale",
                lambda p: _Piece((p.shape[0], -(-p.shape[1] // group)), p.rows, _shrunk(p.col_span, group)),
                self._scale_dtype("weight_scale"),
                FLOATS,
            ),
            self._target.dtype,
        )

    def awq(self) -> Awq:
        group = self._group("scales", 0)
        self._check_edges(_PACK, group)

        def packed(p: Part, rows: int) -> _Piece:
            whole = -(-p.shape[1] // rows), -(-p.shape[0] // _PACK)
            return _Piece(whole, _shrunk(p.col_span, rows), _shrunk(p.row_span, _PACK))

        def scale(p: Part) -> _Piece:
            return _Piece((-(-p.shape[1] // group), p.shape[0]), _shrunk(p.col_span, group), p.rows)

        return Awq(
            self._read("qweight", lambda p: packed(p, 1), torch.int32, ("I32",), axis=1),
            self._read("qzeros", lambda p: packed(p, group), torch.int32, ("I32",), axis=1),
            self._read("scales", scale, self._scale_dtype("scales"), FLOATS, axis=1),
            self._target.dtype,
        )

    def _group(self, suffix: str, dim: int) -> int:
        """The number of inputs that share a scale, by the scale's size; the config's if the source makes any shape."""
        part = self._parts[0]
        stored = self._target.loader.find(f"{part.module}.{suffix}")
        if stored is None or stored.shape is None:
            return self._target.quantization.group
        groups = stored.shape[dim] if len(stored.shape) == 2 else 0
        if not groups or part.shape[1] % groups:
            shape = list(stored.shape)
            self._target.loader.refuse(f"{part.module}.{suffix} of shape {shape} splits no {part.shape[1]} inputs")
            return part.shape[1]
        return part.shape[1] // groups

    def _scale_dtype(self, suffix: str) -> torch.dtype:
        stored = self._target.loader.find(f"{self._parts[0].module}.{suffix}")
        return DTYPES[stored.dtype] if stored is not None and stored.dtype in FLOATS else torch.float32

    def _check_edges(self, rows: int, *cols: int) -> None:
        """Refuse a share or a matrix that ends within a packed integer or a group."""
        for part in self._parts:
            edges = [("row", part.row_span, rows), *(("column", part.col_span, n) for n in cols)]
            for what, span, unit in edges:
                if any(n % unit for n in span):
                    self._target.loader.refuse(
                        f"{part.module}: a rank's {what}s {span[0]} to {span[1]} of {list(part.shape)} cut through "
                        f"{unit} that are packed or scaled together; serve it with a smaller tp"
                    )

    def _read(
        self, suffix: str, piece: Callable[[Part], _Piece], dtype: torch.dtype, kinds: tuple[str, ...], axis: int = 0
    ) -> Tensor:
        """Read one tensor of each part, the parts side by side along `axis`."""
        pieces = [piece(p) for p in self._parts]
        size = list(pieces[0].size())
        size[axis] = sum(p.size()[axis] for p in pieces)
        out = torch.empty((len(self._matrices), *size), dtype=dtype, device=self._target.device)
        for matrix, parts in zip(out, self._matrices, strict=True):
            at = 0
            for part in parts:
                of = piece(part)
                place = matrix.narrow(axis, at, of.size()[axis])
                flat = len(of.shape) == 1
                self._target.loader.read(
                    place[:, 0] if flat else place,
                    f"{part.module}.{suffix}",
                    of.shape,
                    *((of.rows,) if flat else (of.rows, of.cols)),
                    kinds=kinds,
                )
                at += of.size()[axis]
        # A GPU checks all values in almost no time; on a CPU, checking more than the scales would make the load longer.
        if suffix in SCALES or out.is_cuda:
            self._target.loader.look_at(out, suffix)
        return out if self._stacked else out[0]


def _regular(block_of: Tensor, size: int) -> int:
    """`size` if element i is in block i // size, else 0."""
    return size if torch.equal(block_of, torch.arange(len(block_of)) // size) else 0


def _touched(span: tuple[int, int], block: int) -> tuple[int, int]:
    return span[0] // block, -(-span[1] // block)


def _shrunk(span: tuple[int, int], unit: int) -> slice:
    return slice(*_touched(span, unit))
