"""Takes a decode step apart: each kind of block runs alone, over all its layers, on a batch of full size.

Blocks get random hidden states and the caches as they are. All layers of a part run one after another, so each layer
reads its weights from memory and not from the GPU's cache, as in a whole step.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kernels import add_rms_norm, make_rows
from kernels.linear.quantize import quantize_fp8
from kernels.sampling.sampling import sample
from workers.model.batch import Caches
from workers.model.linear import Normed
from workers.model.ling import LingModel
from workers.model.mla import LatentAttention
from workers.model.mlp import Moe

Part = Callable[[], None]


def parts(model: LingModel, caches: Caches, context: int, pages: Tensor, width: int) -> dict[str, Part]:
    """The parts of a decode step: by name, a function that runs the part once.

    context: tokens of each sequence after the step. pages: [batch, pages of a sequence], page numbers. width: columns
    of the page table, which decide how attention is split.
    """
    batch, device = pages.shape[0], pages.device
    ids = torch.arange(batch, device=device) % model.config.vocab_size
    positions = torch.full((batch,), context - 1, device=device)
    table = torch.zeros(caches.state.shape[1], width, dtype=torch.int32, device=device)
    table[:batch, : pages.shape[1]] = pages
    slots = torch.arange(batch, device=device)
    rows = make_rows(slots, positions, (context - 1,) * batch, (1,) * batch)
    step = model.step_inputs(rows, table, caches.page_size)
    x = torch.randn(batch, model.config.hidden_size, device=device).to(caches.latent.dtype)
    residual = torch.randn_like(x)
    rounded = any(layer._mlp.rounds_inputs or layer.attention.rounds_inputs for layer in model._layers)
    normed = Normed(x, quantize_fp8(x) if rounded else None)
    logits = model.logits(x)
    off = torch.zeros(batch, dtype=torch.int64, device=device)
    ones = torch.ones(batch, device=device)

    def attention(latent: bool) -> Part:
        chosen = [m.attention for m in model._layers if isinstance(m.attention, LatentAttention) == latent]

        def run() -> None:
            for block in chosen:
                block(normed, caches, step)

        return run

    def feed_forward(sparse: bool) -> Part:
        chosen = [layer._mlp for layer in model._layers if isinstance(layer._mlp, Moe) == sparse]

        def run() -> None:
            for block in chosen:
                block(normed)

        return run

    def norms() -> None:
        for layer in model._layers:
            layer._add_norm(x, residual, layer._in_norm, layer.attention.rounds_inputs)
            layer._add_norm(x, residual, layer._mlp_norm, layer._mlp.rounds_inputs)
        add_rms_norm(x, residual, model._norm, model.config.rms_norm_eps)

    def inputs() -> None:
        again = make_rows(slots, positions, rows.starts, rows.counts)
        model.step_inputs(again, table, caches.page_size)
        torch.zeros_like(model._embedding(ids))
        # In a step, the first layer that needs these makes them.
        for name in ("token_offsets", "row_starts"):
            getattr(again, name)
        again.blocks(1)

    def head() -> None:
        model.logits(x)

    def sampling() -> None:
        sample(logits, ones, off, ones, ones * 0, off, positions)

    return {
        "linear attention": attention(latent=False),
        "latent attention": attention(latent=True),
        "experts, shared expert and router": feed_forward(sparse=True),
        "dense MLP": feed_forward(sparse=False),
        "norms": norms,
        "embedding and angles": inputs,
        "head": head,
        "sampling": sampling,
    }
