"""Operations on tensors, one file each. A model calls these and nothing below them."""

from kernels.group_norm_gate import group_rms_norm_gate
from kernels.lightning import lightning_attention
from kernels.mla import mla_attention, write_latent
from kernels.moe import moe_experts
from kernels.norm import add_rms_norm, rms_norm
from kernels.ragged import Pages, Rows, make_pages, make_rows
from kernels.rope import qk_norm_rope, rope_interleaved
from kernels.route import route
from kernels.swiglu import swiglu

__all__ = [
    "Pages",
    "Rows",
    "add_rms_norm",
    "group_rms_norm_gate",
    "lightning_attention",
    "make_pages",
    "make_rows",
    "mla_attention",
    "moe_experts",
    "qk_norm_rope",
    "rms_norm",
    "rope_interleaved",
    "route",
    "swiglu",
    "write_latent",
]
