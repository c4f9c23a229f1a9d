"""The modules that the model family's quantized releases quantize, and the tensors of each. Without torch."""

import re

from workers.model.quantization import Method

_PLAIN = re.compile(r"(norm|word_embeddings|lm_head|mlp\.gate)$")
_PLAIN_IN_FP8 = re.compile(r"\.(q_a_proj|q_b_proj|q_proj|kv_a_proj_with_mqa|kv_b_proj)$")
_ROUTED = re.compile(r"\.mlp\.experts\.\d+\.(gate|up|down)_proj$")

# The suffix and safetensors dtype of each tensor of a module.
TENSORS: dict[Method, dict[str, str]] = {
    "none": {"weight": "BF16"},
    "fp8": {"weight": "F8_E4M3", "weight_scale_inv": "F32"},
    "channel fp8": {"weight": "F8_E4M3", "weight_scale": "BF16"},
    "int4": {"weight_packed": "I32", "weight_scale": "BF16"},
    "awq": {"qweight": "I32", "qzeros": "I32", "scales": "F16"},
}


def is_quantized(method: Method, module: str) -> bool:
    """Whether a release in this format quantizes the module."""
    if method == "none" or _PLAIN.search(module):
        return False
    if method == "int4":
        return bool(_ROUTED.search(module))
    return method == "awq" or not _PLAIN_IN_FP8.search(module)
