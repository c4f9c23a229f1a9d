"""Writes a training run's last checkpoint in the released layout: `python -m training.export --run build/nano`."""

import argparse
import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from training.layout import released
from training.model import Nano, Shape
from training.template import CHAT_TEMPLATE, END_OF_TEXT, ROLE_END, START
from workers.model.files import CHECKSUM

FOLDER = Path(__file__).parent.parent / "checkpoints" / "ling-nano"
_FIXED: dict[str, Any] = {
    "architectures": ["BailingMoeV2_5ForCausalLM"],
    "model_type": "bailing_hybrid",
    "torch_dtype": "bfloat16",
    "first_k_dense_replace": 1,
    "num_shared_experts": 1,
    "num_nextn_predict_layers": 1,
    "rope_scaling": None,
    "rope_interleave": True,
    "score_function": "sigmoid",
    "topk_method": "noaux_tc",
    "moe_router_enable_expert_bias": True,
    "router_dtype": "fp32",
    "use_qk_norm": True,
    "use_qkv_bias": False,
    "use_bias": False,
    "linear_silu": False,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def export(model: Nano, tokenizer: Path, folder: Path) -> None:
    """Write all files that a server loads into `folder`. Existing ones are replaced; others, as the card, stay."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = Tokenizer.from_file(str(tokenizer))
    ids = {name: vocabulary.token_to_id(name) for name in (START, END_OF_TEXT, ROLE_END)}
    shape = model.shape
    config = _FIXED | shape.config() | {"num_key_value_heads": shape.num_attention_heads}
    config |= {"pad_token_id": ids[END_OF_TEXT], "eos_token_id": ids[ROLE_END]}
    generation = {
        "bos_token_id": ids[START],
        "eos_token_id": [ids[END_OF_TEXT], ids[ROLE_END]],
        "pad_token_id": ids[END_OF_TEXT],
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": START,
        "eos_token": ROLE_END,
        "pad_token": END_OF_TEXT,
        "chat_template": CHAT_TEMPLATE,
    }
    tensors = {
        name: tensor if name.endswith("expert_bias") else tensor.to(torch.bfloat16)
        for name, tensor in released(model).items()
    }
    index = {
        "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
        "weight_map": dict.fromkeys(sorted(tensors), "model.safetensors"),
    }
    for name, content in (
        ("config.json", config),
        ("generation_config.json", generation),
        ("tokenizer_config.json", settings),
        ("model.safetensors.index.json", index),
    ):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    sums = {CHECKSUM + name: f"{zlib.crc32(_bytes(tensor)):08x}" for name, tensor in tensors.items()}
    save_file(tensors, folder / "next.tmp", {"format": "pt"} | sums)
    (folder / "next.tmp").chmod(0o644)
    os.replace(folder / "next.tmp", folder / "model.safetensors")


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.flatten().view(torch.uint8).numpy().data


def main() -> None:
    """Parse the command line and export the run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("build/nano"), help="the run's folder")
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder to write")
    args = parser.parse_args()
    state = torch.load(args.run / "last.pt", weights_only=True)
    model = Nano(Shape(**state["shape"]))
    model.load_state_dict(state["model"])
    export(model, args.run / "tokenizer.json", args.out)
    print(f"{args.out}: step {state['step']}, {state['tokens']} tokens seen")


if __name__ == "__main__":
    main()
