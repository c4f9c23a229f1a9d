"""Linears, embedding and head, each with one rank's shard. Only they know how a matrix is split and stored."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import linear, linear_fp32
from kernels.linear.quantize import Rounded
from kernels.linear.quantized import Matrix, dense, rounds_inputs
from workers.collectives.base import Collectives
from workers.model.config import LingConfig
from workers.model.formats import Part, Target, load_matrix, load_plain
from workers.model.loader import Loader


@dataclass(frozen=True, slots=True)
class Shard:
    """What every part of a rank's model is made with: the config, the group, and the formats."""

    config: LingConfig
    collectives: Collectives
    device: torch.device
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """The number of ranks that share the model."""
        return self.collectives.size

    def target(self, loader: Loader) -> Target:
        """Where this rank's matrices are stored."""
        return Target(loader, self.config.quantization, self.dtype, self.device)

    def share(self, total: int, start: int = 0) -> slice:
        """This rank's equal share of `total` items that begin at `start`."""
        each = total // self.size
        return slice(start + self.collectives.rank * each, start + (self.collectives.rank + 1) * each)


@dataclass(frozen=True, slots=True)
class Normed:
    """The input of a block. x: [T, hidden]. rounded: `quantize_fp8` of x, if the block needs it."""

    x: Tensor
    rounded: Rounded | None = None


class Linear:
    """y = x W^T with W a stack of parts. Made by the functions below; usable after `load`."""

    def __init__(self, shard: Shard, parts: Sequence[Part]) -> None:
        self._shard = shard
        self._parts = parts
        self._matrix: Matrix

    def load(self, loader: Loader) -> None:
        """Ask for this rank's share."""
        self._matrix = load_matrix(self._shard.target(loader), self._parts)

    @property
    def rounds_inputs(self) -> bool:
        """Whether the matrix multiplies 8-bit floats."""
        return rounds_inputs(self._matrix)

    def __call__(self, x: Tensor | Normed) -> Tensor:
        """Map x [T, in] to [T, out]; for a row-parallel linear, this rank's term of the sum."""
        if isinstance(x, Tensor):
            return linear(x, self._matrix)
        if x.rounded is not None and self.rounds_inputs:
            return self.of_rounded(x.rounded)
        return linear(x.x, self._matrix)

    def of_rounded(self, x: Rounded) -> Tensor:
        """Compute the same from `quantize_fp8` of x, for a matrix that rounds its inputs."""
        return linear(x[0], self._matrix, scale=x[1])

    def dense(self) -> Tensor:
        """This rank's [out, in] in the compute dtype."""
        return dense(self._matrix)


def column_parallel(shard: Shard, modules: Sequence[str], out_size: int, in_size: int, blocks: int = 1) -> Linear:
    """Each rank computes an equal share of every module's outputs, module after module.

    blocks: equal runs of rows within a module that are split separately (queries, keys, values).
    """
    return Linear(shard, column_parts(shard, modules, out_size, in_size, blocks))


def column_parts(shard: Shard, modules: Sequence[str], out_size: int, in_size: int, blocks: int = 1) -> list[Part]:
    """The parts of a column-parallel linear."""
    block = out_size // blocks
    return [Part(m, (out_size, in_size), shard.share(block, b * block)) for m in modules for b in range(blocks)]


def row_parallel(shard: Shard, module: str, out_size: int, in_size: int) -> Linear:
    """Each rank multiplies its share of the inputs; the ranks' results must be summed."""
    return Linear(shard, [Part(module, (out_size, in_size), cols=shard.share(in_size))])


def load_vector(
    shard: Shard,
    loader: Loader,
    name: str,
    size: int,
    split: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Load a vector [size], such as a norm's weight, in `dtype` (None: the compute dtype).

    With `split`, this rank's share.
    """
    out = torch.empty(size // shard.size if split else size, dtype=dtype or shard.dtype, device=shard.device)
    loader.read(out, name, (size,), shard.share(size) if split else slice(None))
    loader.look_at(out, name)
    return out


class Embedding:
    """Token embeddings; the vocabulary is split over the ranks."""

    def __init__(self, shard: Shard, module: str) -> None:
        vocab, width = shard.config.vocab_size, shard.config.hidden_size
        self._shard = shard
        self._rows = shard.share(vocab)
        self._part = Part(module, (vocab, width), self._rows)
        self._weight: Tensor

    def load(self, loader: Loader) -> None:
        """Ask for this rank's share."""
        self._weight = load_plain(self._shard.target(loader), self._part)

    def __call__(self, token_ids: Tensor) -> Tensor:
        """Map ids [T] int64 to [T, hidden], the same on all ranks."""
        if self._shard.size == 1:
            return F.embedding(token_ids, self._weight)
        local = token_ids - self._rows.start
        elsewhere = (local < 0) | (local >= self._weight.shape[0])
        found = F.embedding(local.masked_fill_(elsewhere, 0), self._weight)
        return self._shard.collectives.all_reduce(found.masked_fill_(elsewhere[:, None], 0.0))


class Head:
    """The output projection to the vocabulary, split over the ranks."""

    def __init__(self, shard: Shard, module: str) -> None:
        self._shard = shard
        vocab = shard.config.vocab_size
        self._part = Part(module, (vocab, shard.config.hidden_size), shard.share(vocab))
        self._weight: Tensor

    def load(self, loader: Loader) -> None:
        """Ask for this rank's share."""
        self._weight = load_plain(self._shard.target(loader), self._part)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Map [R, hidden] to all ranks' logits [R, vocab] fp32."""
        # Logits rounded to bf16 would tie.
        return self._shard.collectives.all_gather(linear_fp32(hidden, self._weight), -1)
