"""Makes the Llama goldens in this folder.

    pip install -r requirements.txt
    python make.py tiny                        # tiny-*/ and tiny-q.gguf: seeded random weights, seconds
    python make.py smollm2 --gguf FILE.gguf    # SmolLM2-135M-Instruct Q4_1, dequantised: a minute

Everything is seeded; running it again must leave `git diff` empty, or differ in the last digits of logits only.
"""

import argparse
import json
from pathlib import Path

import gguf
import torch

import reference
import tiny
from texts import PROMPTS, TOKENIZER_TEXTS

HERE = Path(__file__).parent
# On the capital prompt, max|a-b|/max|b|: f32 weights with an f16 cache (llama.cpp) 0.0007, f16 activations 0.002, bf16 0.008;
# activations rounded to 8 bits in blocks of 32 give 0.05 and another answer: the best two first tokens lie 0.003 apart.
TOLERANCE = "0.004"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

def smollm2(path: Path) -> None:
    digest = reference.sha256(path)
    assert digest == SMOLLM2_SHA256, f"{path} is not the pinned file: sha256 {digest}"
    reader = gguf.GGUFReader(path)
    model, tok = reference.model_from_gguf(reader), reference.tokenizer_from_gguf(reader)
    template = reference.field(reader, "tokenizer.chat_template")
    stop = {reference.field(reader, "tokenizer.ggml.eos_token_id")}
    for name, prompt in PROMPTS.items():
        messages = [{"role": "user", "content": prompt}]
        text = reference.render(template, messages)
        recipe = {
            "recipe": "make.py smollm2: GGUF dequantised to float32, transformers LlamaForCausalLM, float32 on the CPU",
            "tolerance": TOLERANCE,
            "weights": "SmolLM2-135M-Instruct.Q4_1.gguf",
            "weights_sha256": digest,
            "messages": messages,
            "rendered": text,
        }
        ids = tok.encode(text, add_special_tokens=False).ids
        reference.write_golden(HERE / f"smollm2_{name}.safetensors", model, tok, ids, 32, stop, recipe)
    cases = [{"text": t, "ids": tok.encode(t, add_special_tokens=False).ids} for t in TOKENIZER_TEXTS]
    lines = ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases)
    (HERE / "smollm2_tokens.json").write_text(f"[\n{lines}\n]\n")


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("what", choices=["tiny", "smollm2"])
    args.add_argument("--gguf", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    args = args.parse_args()
    torch.set_num_threads(1)
    if args.what == "tiny":
        tiny.make_all(HERE)
    elif args.gguf is None:
        raise SystemExit("smollm2 needs --gguf FILE")
    else:
        smollm2(args.gguf)


if __name__ == "__main__":
    main()
