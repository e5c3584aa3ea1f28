"""The reference, openai-whisper in f32, on the weights that weights.lock pins, and the recordings the goldens are made of."""

import json
import math
import struct
import wave
from pathlib import Path

import numpy
import torch
import whisper
from whisper.model import ModelDimensions, Whisper

RATE = 16_000


def variables(folder):
    """The variables of a CTranslate2 file, version 6, which may lie in parts."""
    folder = Path(folder)
    whole = folder / "model.bin"
    parts = [whole] if whole.exists() else sorted(folder.glob("model.bin.part*"))
    data = b"".join(part.read_bytes() for part in parts)
    at = 0

    def number(kind):
        nonlocal at
        value = struct.unpack_from("<" + kind, data, at)[0]
        at += struct.calcsize(kind)
        return value

    def text():
        nonlocal at
        length = number("H")
        at += length
        return data[at - length : at - 1].decode()

    assert number("I") == 6
    text(), number("I")
    found = {}
    kinds = [numpy.float32, numpy.int8, numpy.int16, numpy.int32, numpy.float16]
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind = kinds[number("B")]
        size = number("I")
        found[name] = numpy.frombuffer(data, kind, size // numpy.dtype(kind).itemsize, at).reshape(shape)
        at += size
    return found


def state(found):
    """CTranslate2's names and stacked weights as openai-whisper's."""
    tensor = lambda name: torch.from_numpy(found[name].astype(numpy.float32))
    out = {
        "encoder.positional_embedding": tensor("encoder/position_encodings/encodings"),
        "decoder.positional_embedding": tensor("decoder/position_encodings/encodings"),
        "decoder.token_embedding.weight": tensor("decoder/embeddings/weight"),
    }

    def linear(ours, theirs, parts=("",)):
        weights = tensor(theirs + "/weight").chunk(len(parts))
        biases = tensor(theirs + "/bias").chunk(len(parts))
        for part, weight, bias in zip(parts, weights, biases):
            out[f"{ours}{part}.weight"] = weight
            if part != "key":
                out[f"{ours}{part}.bias"] = bias
            else:
                assert not bias.any()

    def norm(ours, theirs):
        out[f"{ours}.weight"], out[f"{ours}.bias"] = tensor(theirs + "/gamma"), tensor(theirs + "/beta")

    for conv in ("conv1", "conv2"):
        linear(f"encoder.{conv}", f"encoder/{conv}")
    for side, last in (("encoder", "ln_post"), ("decoder", "ln")):
        norm(f"{side}.{last}", f"{side}/layer_norm")
        layer = 0
        while f"{side}/layer_{layer}/ffn/linear_0/weight" in found:
            ours, theirs = f"{side}.blocks.{layer}", f"{side}/layer_{layer}"
            norm(f"{ours}.attn_ln", f"{theirs}/self_attention/layer_norm")
            linear(f"{ours}.attn.", f"{theirs}/self_attention/linear_0", ("query", "key", "value"))
            linear(f"{ours}.attn.out", f"{theirs}/self_attention/linear_1")
            if side == "decoder":
                norm(f"{ours}.cross_attn_ln", f"{theirs}/attention/layer_norm")
                linear(f"{ours}.cross_attn.query", f"{theirs}/attention/linear_0")
                linear(f"{ours}.cross_attn.", f"{theirs}/attention/linear_1", ("key", "value"))
                linear(f"{ours}.cross_attn.out", f"{theirs}/attention/linear_2")
            norm(f"{ours}.mlp_ln", f"{theirs}/ffn/layer_norm")
            linear(f"{ours}.mlp.0", f"{theirs}/ffn/linear_0")
            linear(f"{ours}.mlp.2", f"{theirs}/ffn/linear_1")
            layer += 1
    return out


def load(folder):
    found = variables(folder)
    layers = lambda side: sum(name.startswith(side) and name.endswith("ffn/linear_0/weight") for name in found)
    hidden, mels, _ = found["encoder/conv1/weight"].shape
    dims = ModelDimensions(
        n_mels=mels,
        n_audio_ctx=found["encoder/position_encodings/encodings"].shape[0],
        n_audio_state=hidden,
        n_audio_head=int(found["encoder/num_heads"]),
        n_audio_layer=layers("encoder"),
        n_vocab=found["decoder/embeddings/weight"].shape[0],
        n_text_ctx=found["decoder/position_encodings/encodings"].shape[0],
        n_text_state=hidden,
        n_text_head=int(found["decoder/num_heads"]),
        n_text_layer=layers("decoder"),
    )
    model = Whisper(dims)
    model.load_state_dict(state(found))
    heads = torch.zeros(dims.n_text_layer, dims.n_text_head, dtype=torch.bool)
    for layer, head in json.loads((Path(folder) / "config.json").read_text())["alignment_heads"]:
        heads[layer, head] = True
    model.register_buffer("alignment_heads", heads.to_sparse(), persistent=False)
    return model.eval()


def read_wav(path):
    """16 kHz mono, 16-bit integers or floats."""
    data = Path(path).read_bytes()
    at, kind = 12, None
    while at < len(data):
        name, size = data[at : at + 4], struct.unpack_from("<I", data, at + 4)[0]
        if name == b"fmt ":
            kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", data, at + 8)
            assert (channels, rate) == (1, RATE), path
        if name == b"data":
            body = data[at + 8 : at + 8 + size]
            if kind == 3:
                return numpy.frombuffer(body, numpy.float32).copy()
            return numpy.frombuffer(body, numpy.int16).astype(numpy.float32) / 32768.0
        at += 8 + size + size % 2
    raise ValueError(path)


def write_wav(path, samples):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(numpy.clip(numpy.rint(samples * 32768.0), -32768, 32767).astype("<i2").tobytes())


def ten_minutes(clips):
    """The clips over and over, with silences of 0.4 to 9 s between them, to ten minutes: 16-bit integers."""
    parts, seconds, turn = [], 0.0, 0
    while seconds < 600.0:
        clip = clips[(turn * 7 + turn // 3) % len(clips)]
        silence = 0.4 + 8.6 * math.fmod(turn * 0.618034, 1.0) ** 3
        parts += [clip, numpy.zeros(int(silence * RATE), numpy.float32)]
        seconds += (len(clip) / RATE) + silence
        turn += 1
    return numpy.concatenate(parts)[: 600 * RATE]


def spoken(model, samples, **options):
    torch.manual_seed(0)
    found = whisper.transcribe(model, samples, temperature=0.0, fp16=False, verbose=None, **options)
    keep = ("seek", "start", "end", "text", "tokens", "avg_logprob", "compression_ratio", "no_speech_prob", "words")
    found["segments"] = [{name: s[name] for name in keep if name in s} for s in found["segments"]]
    return found
