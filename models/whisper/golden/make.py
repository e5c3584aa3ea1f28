"""Makes the goldens of this folder from the pinned weights and the recordings of two packages.

    python make.py WEIGHTS RECORDINGS NAME [THREADS]

WEIGHTS is what `pinion weights pull NAME --print-path` prints; RECORDINGS is what recordings.py fetches: `jfk.wav` and `clips`.
Writes NAME.json (transcripts, greedy at temperature 0, with and without word timestamps), NAME.safetensors (the first
window of jfk.wav: features, encoder, first logits, tokens) and RECORDINGS/ten-minutes.wav.
"""

import json
import sys
from pathlib import Path

import safetensors.torch
import torch
import whisper

import reference

weights, recordings, name = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
torch.set_num_threads(int(sys.argv[4]) if len(sys.argv) > 4 else 2)
model = reference.load(weights)
clips = sorted((recordings / "clips").glob("*/*.wav"))
if not model.is_multilingual:
    clips = [clip for clip in clips if clip.parent.name == "en"]
files = [recordings / "jfk.wav", *clips]
english = [reference.read_wav(recordings / "jfk.wav")] + [reference.read_wav(c) for c in clips if c.parent.name == "en"]
long = recordings / "ten-minutes.wav"
reference.write_wav(long, reference.ten_minutes(english))
here = Path(__file__).parent

with torch.no_grad():
    jfk = reference.read_wav(files[0])
    mel = whisper.pad_or_trim(whisper.log_mel_spectrogram(jfk, model.dims.n_mels, padding=480_000), 3000)
    encoded = model.encoder(mel[None])
    tokenizer = whisper.tokenizer.get_tokenizer(model.is_multilingual, language="en", task="transcribe")
    prompt = [*tokenizer.sot_sequence, tokenizer.no_timestamps]
    tokens, first = list(prompt), None
    while tokens[-1] != tokenizer.eot and len(tokens) < 100:
        logits = model.logits(torch.tensor([tokens]), encoded)[0, -1]
        first = logits if first is None else first
        tokens.append(int(logits.argmax()))
    tensors = {
        # Every tenth position of what is large: enough to see any difference, and small enough to keep.
        "input_features": mel[None, :, ::10].contiguous(),
        "encoder_out": encoded[:, ::25].contiguous(),
        "first_logits": first.contiguous(),
        "tokens": torch.tensor(tokens),
    }
    about = {"weights": name, "audio": "jfk.wav", "feature_stride": "10", "encoder_stride": "25", "made by": "openai-whisper 20250625, f32"}
    safetensors.torch.save_file(tensors, str(here / f"{name}.safetensors"), about)

target = here / f"{name}.json"
# What an earlier run has made is kept: this takes long.
found = json.loads(target.read_text()) if target.exists() else {}
for file in [*files, long]:
    key = file.name if file.parent == recordings else f"{file.parent.name}/{file.name}"
    if key in found:
        continue
    samples = reference.read_wav(file)
    found[key] = reference.spoken(model, samples)
    print(key, found[key]["language"], found[key]["text"][:100], flush=True)
    if key in ("jfk.wav", "en/counting.wav", "en/quick_brown_fox.wav", "fr/pangrama.wav", "ja/kazoeru.wav"):
        found[key]["with_words"] = reference.spoken(model, samples, word_timestamps=True)["segments"]
    if key == "jfk.wav" and model.is_multilingual:
        found[key]["translated"] = reference.spoken(model, samples, task="translate")["text"]
    if key in ("jfk.wav", "en/counting.wav"):
        found[key]["beams"] = reference.spoken(model, samples, beam_size=5, patience=1.5)["segments"]
    target.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
