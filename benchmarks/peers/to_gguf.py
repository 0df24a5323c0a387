"""A checkpoint of the Qwen2 or Llama architecture as a BF16 GGUF, bit for bit: norms and biases in float32, as it must be."""

import json
from pathlib import Path

import gguf
import numpy as np

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def convert(folder: Path) -> Path:
    """`folder`/model.gguf, written if it is not there yet."""
    path = folder / "model.gguf"
    if path.exists():
        return path
    config = json.loads((folder / "config.json").read_text())
    architecture = config["model_type"]
    if architecture not in ("qwen2", "llama"):
        raise ValueError(f"{folder}: written for qwen2 and llama, this is {architecture}")
    writer = gguf.GGUFWriter(path.with_suffix(".part"), architecture)
    describe(writer, config)
    for name, weight in tensors(folder):
        if name in ("score.weight", "score.bias"):
            name, weight = as_output(name, weight, config["vocab_size"])
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            weight = interleaved(weight, heads)
        add(writer, gguf_name(name), weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.with_suffix(".part").rename(path)


def describe(writer: gguf.GGUFWriter, config: dict) -> None:
    heads = config["num_attention_heads"]
    rope = config["rope_parameters"]
    if rope["rope_type"] != "default":
        raise ValueError(f"written for rotary embeddings without scaling, this has {rope}")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("no_vocab")


def tensors(folder: Path):
    """(name, bits u16) of every weight of a safetensors file in bfloat16; numpy has no type for it."""
    data = np.memmap(folder / "model.safetensors", np.uint8, "r")
    header_end = 8 + int(data[:8].view(np.uint64)[0])
    for name, facts in json.loads(bytes(data[8:header_end])).items():
        if name == "__metadata__":
            continue
        if facts["dtype"] != "BF16":
            raise ValueError(f"{folder}: {name} is {facts['dtype']}, expected BF16")
        begin, end = facts["data_offsets"]
        yield name, data[header_end + begin : header_end + end].view(np.uint16).reshape(facts["shape"])


def as_output(name: str, weight: np.ndarray, vocab_size: int) -> tuple[str, np.ndarray]:
    """A classification head as the first rows of the output layer: the logits of tokens 0, 1, ... are those of the labels."""
    output = np.zeros((vocab_size, *weight.shape[1:]), np.uint16)
    output[: len(weight)] = weight
    return name.replace("score", "lm_head"), output


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of Q or K in the order in which llama.cpp's llama rotates them: pairs side by side, not half a head apart."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def gguf_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[part]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def add(writer: gguf.GGUFWriter, name: str, weight: np.ndarray) -> None:
    weight = np.ascontiguousarray(weight)
    if weight.ndim == 1:
        writer.add_tensor(name, (weight.astype(np.uint32) << 16).view(np.float32))
    else:
        writer.add_tensor(name, weight.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
