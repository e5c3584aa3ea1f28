"""Tiny Llamas with seeded random weights, in the shapes that real checkpoints come in. Each is wrong in plain sight when
a loader misreads it: the prompt is longer than the original context, so a wrong rotary scaling moves the logits; the
recipe in each golden says by how much. The seeds are those of the first sixty whose greedy choices are clearest.

  tiny-llama3/        Llama 3.1: grouped queries, llama3 rope_scaling, untied head, two end tokens, byte-level BPE
  tiny-tied/          SmolLM2 and Llama 3.2: tied head, no scaling, newer `rope_parameters` in config.json, 3 heads on 1
  tiny-sharded-bf16/  Llama 2 and TinyLlama: bf16 in two files with an index, a stray inv_freq, BPE with byte fallback
  tiny-q.gguf         Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, F16, BF16 and F32 side by side, rope_freqs, tokens in the metadata
"""

import json
import math
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import reference
import tiny_tokenizer

VOCAB = 512
GREEDY = 16
PROMPT = [{"role": "user", "content": "The lamp of the outer light had gone dark at 02:10. Who rang the pilot station twice?"}]

# 32 positions are the original context. With theta 10000 and 8 frequencies all three bands are hit: wavelengths of 6
# (kept), 20 (blended) and 63 upward (stretched by 8).
LLAMA3_SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_type": "llama3",
}


def base_config(hidden: int, heads: int, kv_heads: int, **more) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": 256,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": 2,
        "num_key_value_heads": kv_heads,
        "vocab_size": VOCAB,
    } | more


def random_weights(config: dict, seed: int) -> dict[str, torch.Tensor]:
    """Normal weights scaled by fan-in, so that every path matters: q and k larger (attention that chooses), a small
    embedding (the layers outweigh the residual), gains around one."""
    rng = np.random.default_rng(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = hidden // config["num_attention_heads"]
    kv = head * config["num_key_value_heads"]

    def matrix(rows, cols, gain):
        return torch.from_numpy((rng.standard_normal((rows, cols)) * gain / math.sqrt(cols)).astype(np.float32))

    def gains():
        return torch.from_numpy((1 + 0.2 * rng.standard_normal(hidden)).astype(np.float32))

    w = {"model.embed_tokens.weight": matrix(VOCAB, hidden, 0.4 * math.sqrt(hidden))}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        w[layer + "input_layernorm.weight"] = gains()
        w[layer + "self_attn.q_proj.weight"] = matrix(hidden, hidden, 1.7)
        w[layer + "self_attn.k_proj.weight"] = matrix(kv, hidden, 1.7)
        w[layer + "self_attn.v_proj.weight"] = matrix(kv, hidden, 1.3)
        w[layer + "self_attn.o_proj.weight"] = matrix(hidden, hidden, 1.3)
        w[layer + "post_attention_layernorm.weight"] = gains()
        w[layer + "mlp.gate_proj.weight"] = matrix(inner, hidden, 1.3)
        w[layer + "mlp.up_proj.weight"] = matrix(inner, hidden, 1.3)
        w[layer + "mlp.down_proj.weight"] = matrix(hidden, inner, 1.3)
    w["model.norm.weight"] = gains()
    if not config["tie_word_embeddings"]:
        w["lm_head.weight"] = matrix(VOCAB, hidden, 3.0)
    return w


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_folder(folder: Path, config: dict, generation: dict, tokenizer, tokenizer_config: dict, shards: list[dict]) -> None:
    """A folder as the hub keeps it. `shards` are the weights, one dict per file."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("model*"):
        old.unlink()
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards):
        reference.write_safetensors(folder / name, shard, {"format": "pt"})
    if len(shards) == 1:
        return
    size = sum(t.nbytes for shard in shards for t in shard.values())
    where = {key: name for name, shard in zip(names, shards) for key in sorted(shard)}
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": where})


def without_scaling(config: LlamaConfig) -> LlamaConfig:
    plain = LlamaConfig.from_dict(config.to_dict())
    plain.rope_parameters = {"rope_type": "default", "rope_theta": config.rope_parameters["rope_theta"]}
    return plain


def golden_for_folder(folder: Path, seed: int) -> None:
    """Reads the folder back as any user would and records what transformers says in float32."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tok = PreTrainedTokenizerFast.from_pretrained(folder)
    text = tok.apply_chat_template(PROMPT, tokenize=False, add_generation_prompt=True)
    ids = tok(text, add_special_tokens=False)["input_ids"]
    recipe = {
        "recipe": f"make.py tiny: weights from numpy default_rng({seed}); the folder read back by transformers, upcast to float32",
        "tolerance": "0.0002",
        "weights_sha256": {f.name: reference.sha256(f) for f in sorted(folder.glob("model*.safetensors"))},
        "messages": PROMPT,
        "rendered": text,
    }
    if model.config.rope_parameters["rope_type"] == "llama3":
        recipe["error_without_rope_scaling"] = scaling_effect(model, ids)
    ends = model.generation_config.eos_token_id
    stop = set(ends if isinstance(ends, list) else [ends])
    reference.write_golden(folder / "golden.safetensors", model, tok.backend_tokenizer, ids, GREEDY, stop, recipe)


def scaling_effect(model, ids: list[int]) -> str:
    plain = LlamaForCausalLM(without_scaling(model.config)).eval()
    plain.load_state_dict(model.state_dict())
    error = reference.relative_error(reference.last_logits(plain, ids), reference.last_logits(model, ids))
    assert error > 0.2, f"the rotary scaling hardly shows: {error}"
    return f"{error:.3f}"


def llama3(root: Path) -> None:
    config = base_config(
        64, 4, 2,
        head_dim=16, bos_token_id=507, eos_token_id=[508, 509], rms_norm_eps=1e-5, rope_theta=10000.0,
        rope_scaling=LLAMA3_SCALING, tie_word_embeddings=False, dtype="float32",
    )  # fmt: skip
    generation = {"bos_token_id": 507, "eos_token_id": [508, 509], "do_sample": True, "temperature": 0.6, "top_p": 0.9}
    tok, tok_config = tiny_tokenizer.llama3()
    write_folder(root / "tiny-llama3", config, generation, tok, tok_config, [random_weights(config, 25)])
    golden_for_folder(root / "tiny-llama3", 25)


def tied(root: Path) -> None:
    config = base_config(
        48, 3, 1,
        bos_token_id=1, eos_token_id=2, pad_token_id=2, rms_norm_eps=1e-5,
        rope_parameters={"rope_theta": 100000.0, "rope_type": "default"}, tie_word_embeddings=True, dtype="float32",
    )  # fmt: skip
    tok, tok_config = tiny_tokenizer.chatml()
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    write_folder(root / "tiny-tied", config, generation, tok, tok_config, [random_weights(config, 30)])
    golden_for_folder(root / "tiny-tied", 30)


def sharded_bf16(root: Path) -> None:
    config = base_config(
        64, 4, 4,
        bos_token_id=1, eos_token_id=2, rms_norm_eps=1e-6, rope_theta=10000.0, rope_scaling=None,
        tie_word_embeddings=False, torch_dtype="bfloat16",
    )  # fmt: skip
    weights = {k: t.to(torch.bfloat16) for k, t in random_weights(config, 12).items()}
    # Old checkpoints carry this; it is not a weight and is left alone.
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = 1 / 10000 ** (torch.arange(0, 16, 2) / 16)
    keys = list(weights)
    cut = keys.index("model.layers.0.mlp.up_proj.weight")  # inside a layer, as hub shards are cut
    shards = [{k: weights[k] for k in part} for part in (keys[:cut], keys[cut:])]
    tok, tok_config = tiny_tokenizer.llama2()
    generation = {"bos_token_id": 1, "eos_token_id": 2}
    write_folder(root / "tiny-sharded-bf16", config, generation, tok, tok_config, shards)
    golden_for_folder(root / "tiny-sharded-bf16", 12)


# GGUF -----------------------------------------------------------------------------------------------------------------

Q = gguf.GGMLQuantizationType
GGUF_TYPES = {
    "token_embd": [Q.F16],
    "attn_q": [Q.Q4_0, Q.Q4_1],
    "attn_k": [Q.Q4_1, Q.Q4_0],
    "attn_v": [Q.Q8_0, Q.F16],
    "attn_output": [Q.Q5_0, Q.BF16],
    "ffn_gate": [Q.Q4_0, Q.Q5_1],
    "ffn_up": [Q.Q4_1, Q.F32],
    "ffn_down": [Q.Q8_0, Q.Q4_0],
    "output": [Q.Q8_0],
}


def rope_factors(scaling: dict, theta: float, head: int) -> np.ndarray:
    """What llama.cpp divides each rotary frequency by; kept in the file as rope_freqs.weight."""
    old = scaling["original_max_position_embeddings"]
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    out = []
    for i in range(0, head, 2):
        turns = old * theta ** (-i / head) / (2 * math.pi)  # full turns within the original context
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, dtype=np.float32)


def permute(w: np.ndarray, heads: int) -> np.ndarray:
    rows, cols = w.shape
    return w.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)


def write_gguf(path: Path, config: dict, weights: dict[str, torch.Tensor], tok, tok_config: dict) -> None:
    out = gguf.GGUFWriter(path, "llama")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head = config["hidden_size"] // heads
    out.add_name("tiny-q")
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_rope_dimension_count(head)
    out.add_rope_freq_base(config["rope_theta"])
    out.add_vocab_size(VOCAB)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    model = json.loads(tok.to_str())["model"]
    words = [tok.id_to_token(i) for i in range(VOCAB)]
    special = tok.get_added_tokens_decoder()
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("llama-bpe")
    out.add_token_list(words)
    out.add_token_types([gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(VOCAB)])
    out.add_token_merges([" ".join(pair) for pair in model["merges"]])
    out.add_bos_token_id(config["bos_token_id"])
    out.add_eos_token_id(509)
    out.add_chat_template(tok_config["chat_template"])
    out.add_tensor("rope_freqs.weight", rope_factors(config["rope_scaling"], config["rope_theta"], head))
    gguf_names = {hf: name for name, hf in reference.HF_NAMES.items()}
    for key, tensor in weights.items():
        w = tensor.numpy()
        layer, part = None, {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm"}.get(key, "output")
        if key.startswith("model.layers."):
            layer = int(key.split(".")[2])
            part = gguf_names[key.split(".", 3)[3].removesuffix(".weight")]
        if part in ("attn_q", "attn_k"):
            w = permute(w, heads if part == "attn_q" else kv_heads)
        name = f"{part}.weight" if layer is None else f"blk.{layer}.{part}.weight"
        kinds = GGUF_TYPES.get(part, [Q.F32])  # norms stay F32
        kind = kinds[(layer or 0) % len(kinds)]
        out.add_tensor(name, gguf.quantize(w, kind), raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def quantised(root: Path) -> None:
    config = base_config(
        64, 4, 2,
        bos_token_id=507, rms_norm_eps=1e-5, rope_theta=10000.0, rope_scaling=LLAMA3_SCALING, tie_word_embeddings=False,
    )  # fmt: skip
    tok, tok_config = tiny_tokenizer.llama3()
    path = root / "tiny-q.gguf"
    write_gguf(path, config, random_weights(config, 54), tok, tok_config)
    model = reference.model_from_gguf(gguf.GGUFReader(path), LLAMA3_SCALING)
    text = reference.render(tok_config["chat_template"], PROMPT, bos_token=tok.id_to_token(507))
    ids = tok.encode(text, add_special_tokens=False).ids
    recipe = {
        "recipe": "make.py tiny: numpy default_rng(54), quantised by gguf-py, dequantised to float32, llama3 scaling",
        "tolerance": "0.004",  # activations rounded to 8 bits give 0.03 (llama.cpp)
        "weights_sha256": {path.name: reference.sha256(path)},
        "messages": PROMPT,
        "rendered": text,
        "error_without_rope_scaling": scaling_effect(model, ids),
    }
    reference.write_golden(root / "tiny-q.golden.safetensors", model, tok, ids, GREEDY, {509}, recipe)


def make_all(root: Path) -> None:
    for make in (llama3, tied, sharded_bf16, quantised):
        make(root)
