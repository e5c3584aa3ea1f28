"""The prompts and the texts that the goldens are made of. LONG also trains the tiny tokenizers."""

LONG = """Read the report below and answer the question after it.

On the night of 14 November the harbour office at Sørvik logged wind from the north-west at 31 knots and a sea of four \
metres. At 02:10 the keeper, Marit Aas, saw that the lamp of the outer light had gone dark. She rang the pilot station \
twice, got no answer, and walked the 1,200 metres along the breakwater with a hand lantern and a coil of rope. The door \
of the tower had frozen shut, so she broke the window of the oil store with her boot and climbed in. The fault was a \
cracked glass in the burner; water had come through the roof and put it out. There was no spare. She cut the bottom from \
a bottle of cherry cordial, set it over the flame with wire, and turned the lens by hand, once every ten seconds, until \
the clockwork had dried enough to run alone. The coaster Ingrid, with nine people aboard and a cargo of salted cod, \
passed the reef at 03:25 and reached the quay an hour later. Her master said he had counted the flashes and found them \
"a little red, and a little slow, but there". The office has since bought three spare glasses, oiled the hinges, and \
entered a new rule in the book: the outer light is to be visited before every gale, and not only after.

Question: What was the name of the keeper?"""

PROMPTS = {"capital": "What is the capital of France?", "long": LONG}

# Texts whose tokens pin the tokenizer: digits, contractions, runs of blanks, other scripts, emoji, special words.
TOKENIZER_TEXTS = [
    "",
    "Hello, world!",
    " leading and trailing ",
    "It's 2026-11-23; we've got 12345 tokens, don't we?",
    "tabs\tand\n\nnew lines\r\n  and    runs   of blanks",
    "naïve café, Ærøskøbing, Straße",
    "日本語のテキストと中文",
    "emoji 🙂👩‍🚀 and flags 🇫🇷",
    "<|im_start|>user\nspecial words inside<|im_end|>\n",
    "fn main() { println!(\"{:>8.3}\", x[0] as f32 / 3.0); }",
    "half a special <|im_sta rt|> word, zero\u200bwidth and \u0301 combining",
]
