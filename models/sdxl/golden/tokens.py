"""What transformers' CLIPTokenizer makes of prompts, for tests/tokens.rs.

    python tokens.py BPE_SIMPLE_VOCAB_16E6.TXT.GZ      # writes tokens.json beside itself; versions in requirements.txt

The file is OpenAI's, MIT, inside PyPI open_clip_torch==3.3.0 as open_clip/bpe_simple_vocab_16e6.txt.gz. `clip` has the ids of
the real vocabulary; `small` those of its first merges alone, which the test makes a folder of, so that it needs no file.
"""

import gzip
import json
import os
import sys
import tempfile

import transformers
from transformers import CLIPTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
MERGES = 49152 - 256 - 2
SMALL = 400
TEXTS = [
    "", " ", "!", "a", "An astronaut riding a rainbow unicorn", "a photo of a cat, 8k, (masterpiece:1.2), best quality!!",
    "A   CAT\t\n in  the\u00a0hat\u3000!", "it's John's, we're they'll I'd I've I'm can't DON'T",
    "Ünïcödé naïve café", "cafe\u0301 (decomposed)", "日本の桜 東京タワー", "Привет, мир", "مرحبا بالعالم",
    "🦄🌈 emoji 👩‍👩‍👧 flags 🇨🇭", "1234567890 3.14 ½ ² Ⅷ ٣", "under_score-dash/slash\\back `tick` ~tilde^", "<html>&amp; &lt;b&gt;",
    "wow!! so <|endoftext|> <|ENDOFTEXT|> good <|startoftext|>", "a photo of <s0><s1> at <S0>", "\u0130stanbul ǅ ß ẞ ſ",
    "zero\u200bwidth \u00ad soft \ufeff bom \u0000 nul \u0007", "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "x" * 300, "the quick brown fox jumps over the lazy dog " * 12, "word " * 75, "word " * 76, "12 " * 40,
    "a !" * 40, "<|endoftext|>" * 90,
]
# Words of learned concepts, added to both.
ADDED = ["<s0>", "<s1>"]


def letters():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + at) for at, _ in enumerate(others)]


def folder(path, merges, more):
    words = [merge.replace(" ", "") for merge in merges]
    tokens = letters() + [letter + "</w>" for letter in letters()] + words + ["<|startoftext|>", "<|endoftext|>"]
    with open(os.path.join(path, "vocab.json"), "w") as file:
        json.dump({token: at for at, token in enumerate(tokens)}, file)
    with open(os.path.join(path, "merges.txt"), "w") as file:
        file.write("#version: 0.2\n" + "\n".join(merges) + "\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **more}
    with open(os.path.join(path, "tokenizer_config.json"), "w") as file:
        json.dump(config, file)
    return config


def ends(normalized):
    def token(content):
        return {
            "__type": "AddedToken", "content": content, "lstrip": False, "normalized": normalized, "rstrip": False,
            "single_word": False,
        }

    return {"bos_token": token("<|startoftext|>"), "eos_token": token("<|endoftext|>"), "unk_token": token("<|endoftext|>")}


def cases(merges, more):
    with tempfile.TemporaryDirectory() as path:
        config = folder(path, merges, more)
        tokenizer = CLIPTokenizer.from_pretrained(path)
        tokenizer.add_tokens(ADDED)
        ids = [
            tokenizer(text, padding="max_length", max_length=77, truncation=True).input_ids for text in TEXTS
        ]
        return {"config": config, "ids": [shorten(row) for row in ids]}


def shorten(row):
    """Without the padding at the end but one, which says what it is."""
    while len(row) > 2 and row[-1] == row[-2]:
        row = row[:-1]
    return row


def main():
    with gzip.open(sys.argv[1], "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1 : 1 + MERGES]
    kinds = {
        # As the hub's folders are written: the second pads with "!".
        "first": {"pad_token": "<|endoftext|>", **ends(True)},
        "second": {"pad_token": "!", **ends(True)},
        "plain": {},
    }
    result = {
        "made_with": f"transformers {transformers.__version__}",
        "added": ADDED,
        "texts": TEXTS,
        "merges": merges[:SMALL],
        "small": {name: cases(merges[:SMALL], more) for name, more in kinds.items()},
        "clip": {name: cases(merges, more) for name, more in kinds.items()},
    }
    with open(os.path.join(HERE, "tokens.json"), "w") as file:
        json.dump(result, file, ensure_ascii=True, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
