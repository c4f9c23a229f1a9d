"""Ling-2.6: token ids to hidden states to logits, on one rank of a tensor-parallel group."""

import math
from dataclasses import replace

import numpy
import torch
from torch import Tensor

from kernels import Keep, Rows, Widths, add_rms_norm, forms, make_pages, make_rows
from workers.collectives.base import Collectives
from workers.model.batch import Batch, Caches
from workers.model.config import LingConfig
from workers.model.layer import DecoderLayer
from workers.model.lightning import LightningAttention
from workers.model.linear import Embedding, Head, Shard, load_vector
from workers.model.loader import Loader
from workers.model.mtp import MtpLayer
from workers.model.rope import Rope
from workers.model.step import LinearRows, StepInputs


class LingModel:
    """One rank's share of the model; usable after `weights.load_weights`.

    All ranks call `forward`, `ahead`, `commit` and `logits` with equal arguments in the same order, under
    `torch.inference_mode`.
    """

    def __init__(self, config: LingConfig, collectives: Collectives, device: torch.device, dtype: torch.dtype) -> None:
        config.check_tp(collectives.size)
        self.config = config
        self.rank, self.tp = collectives.rank, collectives.size
        self._shard = Shard(config, collectives, device, dtype)
        self._embedding = Embedding(self._shard, "model.word_embeddings")
        self._layers = [DecoderLayer(self._shard, i) for i in range(config.num_hidden_layers)]
        self._mtp = MtpLayer(self._shard) if config.drafts else None
        self._head = Head(self._shard, "lm_head")
        widths = {config.rotary_dim, config.qk_rope_head_dim}
        ropes = {width: Rope(width, config.rope_theta, config.yarn, device) for width in widths}
        self._linear_rope, self._mla_rope = ropes[config.rotary_dim], ropes[config.qk_rope_head_dim]
        self._widths = Widths(config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim, config.kv_lora_rank)
        self._norm: Tensor

    def forgo_drafts(self) -> None:
        """Drop the MTP layer; call it before `load`."""
        self.config = replace(self.config, drafts=False)
        self._mtp = None

    def load(self, loader: Loader) -> None:
        """Ask for this rank's share; the loader notes what is missing or wrong."""
        self._embedding.load(loader)
        for layer in self._layers:
            layer.load(loader)
        self._norm = load_vector(self._shard, loader, "model.norm.weight", self.config.hidden_size)
        self._head.load(loader)
        if self._mtp is not None:
            self._mtp.load(loader)

    def forward(self, batch: Batch, caches: Caches) -> Tensor:
        """Compute hidden states [T, hidden] after the final norm, the same on all ranks; advance the caches."""
        step = self._inputs_of(batch, caches)
        x = self._embedding(batch.token_ids)
        residual = torch.zeros_like(x)
        for layer in self._layers:
            x, residual = layer(x, residual, caches, step)
        return add_rms_norm(x, residual, self._norm, self.config.rms_norm_eps)[0]

    def ahead(self, batch: Batch, hidden: Tensor, caches: Caches) -> Tensor:
        """Compute the MTP layer's hidden states [T, hidden]; advance its latents.

        Their `logits` are those of the tokens at positions + 2.

        batch: rows at the positions of `hidden`, with the token ids of one position later. hidden: [T, hidden] at these
        positions, from `forward` or, for further drafts, from this method.
        """
        assert self._mtp is not None, "the MTP layer was not loaded"
        return self._mtp(self._embedding(batch.token_ids), hidden, caches, self._inputs_of(batch, caches))

    def commit(self, rows: Rows, accepted: Tensor, caches: Caches) -> None:
        """Advance the linear states of the latest verified rows by their accepted tokens, [B] of the first ones."""
        for layer in self._layers:
            if isinstance(layer.attention, LightningAttention):
                layer.attention.commit(rows, accepted, caches)

    def _inputs_of(self, batch: Batch, caches: Caches) -> StepInputs:
        rows = make_rows(batch.slots, batch.positions, batch.starts, batch.counts, batch.keeps)
        return self.step_inputs(rows, batch.page_table, caches.page_size, batch.verified)

    def step_inputs(self, rows: Rows, page_table: Tensor, page_size: int, verified: int = 0) -> StepInputs:
        """The inputs that all layers share in a step with these rows, of which the first `verified` end in drafts."""
        linear = self._linear_rope(rows.positions)
        pages = make_pages(rows, page_table, page_size)
        return StepInputs(
            linear=split(rows, verified),
            pages=pages,
            forms=forms(rows, pages, self._widths),
            linear_rope=linear,
            mla_rope=linear if self._mla_rope is self._linear_rope else self._mla_rope(rows.positions),
        )

    def count_experts(self, counts: Tensor | None) -> None:
        """From now on add to `counts` [sparse layers, experts] how many tokens choose each expert.

        None turns it off.
        """
        for index, layer in enumerate(self._layers[self.config.first_k_dense_replace :]):
            layer.count_experts(None if counts is None else counts[index])

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute logits [R, vocab] fp32 of hidden states [R, hidden], with the whole vocabulary on every rank."""
        return self._head(hidden)


def split(rows: Rows, verified: int) -> LinearRows:
    """Split a step's rows by how linear attention computes them; the first `verified` end in drafts."""
    if not verified:
        return LinearRows(rows, None, 0)
    tokens, known = sum(rows.counts[:verified]), rows.known_starts
    starts = known and known[:verified]
    first = make_rows(rows.slots[:verified], rows.positions[:tokens], starts, rows.counts[:verified])
    if verified == len(rows.counts):
        return LinearRows(None, first, tokens)
    keeps = tuple(Keep(keep.row - verified, keep.count, keep.slot) for keep in rows.keeps)
    rest = make_rows(
        rows.slots[verified:], rows.positions[tokens:], rows.starts[verified:], rows.counts[verified:], keeps
    )
    return LinearRows(rest, first, tokens)


def make_caches(
    config: LingConfig,
    tp: int,
    num_pages: int,
    page_size: int,
    num_slots: int,
    device: torch.device,
    dtype: torch.dtype,
    verified: int = 0,
) -> Caches:
    """Make one rank's empty caches; states are always fp32. verified: the most tokens of verified rows."""
    latent = (config.latent_layers, num_pages, page_size, config.latent_width)
    state = (config.linear_layers, num_slots, *config.state_shape(tp))
    heads, key, value = config.state_shape(tp)
    keys, values = ((config.linear_layers, verified, heads, width) for width in (key, value))
    return Caches(
        latent=_zeros(latent, dtype, device),
        state=_zeros(state, torch.float32, device),
        verified=(_zeros(keys, torch.float32, device), _zeros(values, dtype, device)) if verified else None,
    )


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make zeros that take memory on a CPU only when they are written to; `torch.zeros` writes all of them."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    untouched = numpy.zeros(math.prod(shape) * dtype.itemsize, numpy.uint8)
    return torch.from_numpy(untouched).view(dtype).view(shape)
