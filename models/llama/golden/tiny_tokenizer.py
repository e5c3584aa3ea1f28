"""Tokenizers of 512 words, trained on the LONG text, built the way three families of Llama build theirs.

  llama3()  byte-level BPE, Llama 3's regex, special words at the end, a post-processor that adds the first token (the
            chat template writes it too: encoding a rendered chat must not add a second one)
  chatml()  byte-level BPE, single digits, special words first (SmolLM2)
  llama2()  BPE over characters with byte fallback; blanks are U+2581; the decoder strips one leading blank

Each returns (tokenizers.Tokenizer, the content of tokenizer_config.json).
"""

import json

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from texts import LONG

SIZE = 512

LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
LLAMA3_CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

CHATML_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML_CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LLAMA2_SPECIAL = ["<unk>", "<s>", "</s>"]
LLAMA2_CHAT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def config(bos: str, eos: str, chat: str, **more) -> dict:
    return {
        "bos_token": bos,
        "chat_template": chat,
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "model_max_length": 256,
        "tokenizer_class": "PreTrainedTokenizerFast",
    } | more


def train_bytes(pre_tokenizer, size: int, special: list[str], **model) -> Tokenizer:
    tok = Tokenizer(models.BPE(**model))
    tok.pre_tokenizer = pre_tokenizer
    tok.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tok.train_from_iterator([LONG], trainer)
    return tok


def llama3():
    pre = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok = train_bytes(pre, SIZE - len(LLAMA3_SPECIAL), [], ignore_merges=True)
    tok.add_special_tokens(LLAMA3_SPECIAL)
    first = LLAMA3_SPECIAL[0]
    tok.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", pair=f"{first} $A {first} $B", special_tokens=[(first, tok.token_to_id(first))]
    )
    assert tok.get_vocab_size() == SIZE
    return tok, config(first, LLAMA3_SPECIAL[2], LLAMA3_CHAT)


def chatml():
    pre = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tok = train_bytes(pre, SIZE, CHATML_SPECIAL)
    assert tok.get_vocab_size() == SIZE
    return tok, config("<|im_start|>", "<|im_end|>", CHATML_CHAT, pad_token="<|im_end|>", unk_token="<|endoftext|>")


def llama2():
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained = Tokenizer(models.BPE())
    trained.normalizer = spaces
    trained.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")  # for training only
    trained.train_from_iterator([LONG], trainers.BpeTrainer(vocab_size=SIZE - 256 - 3, show_progress=False))
    learnt = json.loads(trained.to_str())["model"]
    words = LLAMA2_SPECIAL + [f"<0x{b:02X}>" for b in range(256)] + sorted(learnt["vocab"], key=learnt["vocab"].get)
    tok = Tokenizer(
        models.BPE(
            vocab={w: i for i, w in enumerate(words)},
            merges=[tuple(pair) for pair in learnt["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tok.normalizer = spaces
    tok.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tok.add_special_tokens(LLAMA2_SPECIAL)
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tok.token_to_id("<s>"))]
    )
    assert tok.get_vocab_size() == SIZE
    return tok, config("<s>", "</s>", LLAMA2_CHAT, unk_token="<unk>")
