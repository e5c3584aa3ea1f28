"""The reference: transformers' LlamaForCausalLM in float32, and the golden file that records what it says.

A golden is a safetensors file with three tensors and its recipe in the metadata:
  prompt_ids  i64 [n]      the prompt, special tokens included
  last_logits f32 [vocab]  logits at the last prompt position
  greedy_ids  i64 [m]      the greedy continuation, ending with the end token if one came
`tolerance` in the metadata is for last_logits, as max|a-b| / max|b|; `greedy_margins` says how clear each choice was.
Knows nothing of Pinion.
"""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import gguf
import jinja2
import numpy as np
import torch
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
PACKAGES = ("torch", "transformers", "tokenizers", "gguf", "numpy", "safetensors")


def sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """max|a-b| / max|b|, the measure that `cargo xtask golden` prints."""
    return ((a - b).abs().max() / b.abs().max()).item()


@torch.inference_mode()
def last_logits(model, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids])).logits[0, -1].float()


@torch.inference_mode()
def greedy(model, ids: list[int], count: int, stop: set[int]):
    """Returns (ids, margins): for each step the gap between the two best logits, in units of the largest |logit|."""
    out, margins, feed, cache = [], [], ids, None
    while len(out) < count and not (out and out[-1] in stop):
        step = model(torch.tensor([feed]), past_key_values=cache, use_cache=True)
        logits, cache = step.logits[0, -1], step.past_key_values
        best = logits.topk(2)
        margins.append(((best.values[0] - best.values[1]) / logits.abs().max()).item())
        out.append(best.indices[0].item())
        feed = out[-1:]
    return out, margins


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """The library writes metadata in hash order; sorted, the same content gives the same bytes."""
    raw = save(tensors, metadata)
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])


def write_golden(path: Path, model, tok: Tokenizer, ids: list[int], count: int, stop: set[int], recipe: dict) -> None:
    logits = last_logits(model, ids)
    tokens, margins = greedy(model, ids, count, stop)
    meta = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in recipe.items()}
    meta["greedy_text"] = tok.decode(tokens, skip_special_tokens=True)
    meta["greedy_margins"] = json.dumps([round(m, 4) for m in margins])
    meta["versions"] = json.dumps({p: version(p) for p in PACKAGES})
    tensors = {
        "prompt_ids": torch.tensor(ids, dtype=torch.int64),
        "last_logits": logits.contiguous(),
        "greedy_ids": torch.tensor(tokens, dtype=torch.int64),
    }
    write_safetensors(path, tensors, meta)
    where = path.relative_to(HERE)
    print(f"{where}: {len(ids)} prompt tokens, greedy {tokens}, least margin {min(margins):.4f}, max|logit| {logits.abs().max():.2f}")


def render(template: str, messages: list[dict], **tokens: str) -> str:
    """A chat template as transformers renders it, with the assistant's turn opened."""
    env = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    return env.from_string(template).render(messages=messages, add_generation_prompt=True, **tokens)


# GGUF -> transformers -------------------------------------------------------------------------------------------------

HF_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def hf_name(name: str) -> str:
    top = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    if (stem := name.removesuffix(".weight")) in top:
        return top[stem] + ".weight"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{HF_NAMES[part]}.weight"


def unpermute(w: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp keeps the rows of q and k in interleaved rotary pairs; transformers wants the two halves."""
    rows, cols = w.shape
    return w.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def field(reader: gguf.GGUFReader, key: str, default=None):
    found = reader.get_field(key)
    return default if found is None else found.contents()


def model_from_gguf(reader: gguf.GGUFReader, rope_scaling: dict | None = None) -> LlamaForCausalLM:
    """Dequantises every tensor to float32. `rope_scaling` stands for what the GGUF keeps as rope_freqs.weight."""
    get = lambda key: field(reader, "llama." + key)
    heads, kv_heads = get("attention.head_count"), get("attention.head_count_kv")
    state = {}
    for t in reader.tensors:
        if t.name == "rope_freqs.weight":
            continue
        w = gguf.dequantize(t.data, t.tensor_type).astype(np.float32)
        if ".attn_q." in t.name or ".attn_k." in t.name:
            w = unpermute(w, heads if ".attn_q." in t.name else kv_heads)
        state[hf_name(t.name)] = torch.from_numpy(np.ascontiguousarray(w))
    tied = "lm_head.weight" not in state
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    rope = {"rope_type": "default", "rope_theta": get("rope.freq_base")} | (rope_scaling or {})
    config = LlamaConfig(
        vocab_size=state["model.embed_tokens.weight"].shape[0],
        hidden_size=get("embedding_length"),
        intermediate_size=get("feed_forward_length"),
        num_hidden_layers=get("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=get("context_length"),
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
        rope_parameters=rope,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config).float().eval()
    model.load_state_dict(state, strict=True)
    return model


def tokenizer_from_gguf(reader: gguf.GGUFReader) -> Tokenizer:
    """Byte-level BPE with the pre-tokenizer that `tokenizer.ggml.pre` = smollm names: single digits, then GPT-2's regex."""
    assert field(reader, "tokenizer.ggml.model") == "gpt2" and field(reader, "tokenizer.ggml.pre") == "smollm"
    words = field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(m.split(" ")) for m in field(reader, "tokenizer.ggml.merges")]
    tok = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=merges))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tok.decoder = decoders.ByteLevel()
    kinds = field(reader, "tokenizer.ggml.token_type")
    tok.add_special_tokens([w for w, kind in zip(words, kinds) if kind == gguf.TokenType.CONTROL])
    return tok
