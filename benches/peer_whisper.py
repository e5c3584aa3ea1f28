"""Pinion beside faster-whisper, whisper.cpp and openai-whisper on the same weights and recordings: the README's table.

    python -m venv peers && peers/bin/pip install -r benches/peers_whisper.txt
    peers/bin/python benches/peer_whisper.py --pinion target/release/pinion --weights FOLDER \\
        --recordings FOLDER [--long] --out benches/results/DATE-MACHINE-whisper.json

FOLDER is what `pinion weights pull whisper-tiny.en --print-path` prints (CTranslate2's layout; a file in parts is joined
into --cache); --recordings is the folder that models/whisper/golden/recordings.py fetches: jfk.wav is the short recording, and with
--long its English clips with silences between them, ten minutes, are the long one. The peers get conversions of it: openai-whisper the same values in f32 through models/whisper/golden,
whisper.cpp its own f16 file. One run, in turn, round after round; every measurement is a fresh process, asked once before
it is measured, whose load is not counted; Pinion is the whole server, asked over HTTP. Greedy, temperature 0 without
fallback, English, --threads threads. What counts is seconds of work per second of audio; a ratio is the best peer's
median over Pinion's at the same precision, in brackets the least and largest of one round. Beside it the seconds of CPU
per second of audio, which a busy machine disturbs less. Memory is the peak resident set of the process that holds the
weights. `long` is the long recording window by window; `long batched` with eight windows at once, Pinion and faster-whisper,
the one peer that does so. Installs nothing.
"""

import argparse
import base64
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

GOLDEN = Path(__file__).parent.parent / "models/whisper/golden"
ENGINES = {
    "pinion f32": "f32",
    "pinion f16": "f16",
    "faster-whisper f32": "f32",
    "openai-whisper f32": "f32",
    "whisper.cpp f16": "f16",
}


# Windows at once where a name ends so.
BATCH = 8
BATCHED = f", batches of {BATCH}"


def long(recordings: Path, cache: Path) -> Path:
    """Ten minutes of the English recordings with silences, as the goldens have them: models/whisper/golden/reference.py."""
    target = cache / "ten-minutes.wav"
    if not target.exists():
        sys.path.insert(0, str(GOLDEN))
        import reference

        files = [recordings / "jfk.wav", *sorted((recordings / "clips/en").glob("*.wav"))]
        reference.write_wav(target, reference.ten_minutes([reference.read_wav(file) for file in files]))
    return target


def joined(folder: Path, cache: Path) -> Path:
    """What faster-whisper wants: one model.bin, and the vocabulary as a list."""
    target = cache / folder.name
    if (target / "vocabulary.json").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        (target / name).write_bytes((folder / name).read_bytes())
    whole = folder / "model.bin"
    parts = [whole] if whole.exists() else sorted(folder.glob("model.bin.part*"))
    (target / "model.bin").write_bytes(b"".join(part.read_bytes() for part in parts))
    found = json.loads((folder / "tokenizer.json").read_text())
    tokens = {number: token for token, number in found["model"]["vocab"].items()}
    tokens |= {added["id"]: added["content"] for added in found["added_tokens"]}
    times = [f"<|{step * 0.02:.2f}|>" for step in range(1501)]
    listed = [tokens[number] for number in range(max(tokens) + 1)]
    (target / "vocabulary.json").write_text(json.dumps(listed + times))
    return target


def ggml(folder: Path, cache: Path) -> Path:
    """whisper.cpp's file: a header, mel filters, the vocabulary, then f16 and f32 tensors under openai-whisper's names."""
    import numpy
    import struct
    import whisper

    sys.path.insert(0, str(GOLDEN))
    import reference

    target = cache / f"{folder.name}.ggml.bin"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    model = reference.load(folder)
    dims = model.dims
    with target.open("wb") as file:
        sizes = [dims.n_vocab, dims.n_audio_ctx, dims.n_audio_state, dims.n_audio_head, dims.n_audio_layer]
        sizes += [dims.n_text_ctx, dims.n_text_state, dims.n_text_head, dims.n_text_layer, dims.n_mels, 1]
        file.write(struct.pack("<I11i", 0x67676D6C, *sizes))
        filters = whisper.audio.mel_filters("cpu", dims.n_mels).numpy()
        file.write(struct.pack("<2i", *filters.shape) + filters.astype(numpy.float32).tobytes())
        tokenizer = whisper.tokenizer.get_tokenizer(model.is_multilingual, num_languages=model.num_languages)
        tokens = [tokenizer.encoding.decode_single_token_bytes(i) for i in range(tokenizer.eot)]
        file.write(struct.pack("<i", len(tokens)) + b"".join(struct.pack("<i", len(t)) + t for t in tokens))
        for name, tensor in model.state_dict().items():
            values = tensor.numpy()
            if name in ("encoder.conv1.bias", "encoder.conv2.bias"):
                values = values.reshape(-1, 1)
            half = values.ndim > 1 and "positional_embedding" not in name and not name.endswith("conv1.bias") and not name.endswith("conv2.bias")
            file.write(struct.pack("<3i", values.ndim, len(name), int(half)))
            file.write(struct.pack(f"<{values.ndim}i", *reversed(values.shape)) + name.encode())
            file.write(values.astype(numpy.float16 if half else numpy.float32).tobytes())
    return target


def drive(engine: str, folder: str, audio: str, threads: int, repeats: int) -> dict:
    """One peer in this process: loads, hears once unmeasured, then the median of the repeats."""
    if engine.startswith("faster-whisper"):
        from faster_whisper import BatchedInferencePipeline, WhisperModel
        from faster_whisper.audio import decode_audio

        model = WhisperModel(folder, device="cpu", compute_type="float32", cpu_threads=threads)
        samples = decode_audio(audio)
        options = {"language": "en", "beam_size": 1, "best_of": 1, "temperature": 0.0}
        if engine.endswith(BATCHED):
            model, options = BatchedInferencePipeline(model), {**options, "batch_size": BATCH}
        hear = lambda: " ".join(s.text for s in model.transcribe(samples, **options)[0])
    elif engine.startswith("openai-whisper"):
        import torch

        sys.path.insert(0, str(GOLDEN))
        import reference

        torch.set_num_threads(threads)
        model = reference.load(folder)
        samples = reference.read_wav(audio)
        hear = lambda: reference.spoken(model, samples, language="en")["text"]
    else:
        from pywhispercpp.model import Model

        sys.path.insert(0, str(GOLDEN))
        import reference

        model = Model(folder, n_threads=threads, print_progress=False, print_realtime=False, language="en", temperature_inc=0.0)
        samples = reference.read_wav(audio)
        hear = lambda: " ".join(s.text for s in model.transcribe(samples))
    sys.path.insert(0, str(GOLDEN))
    import reference

    seconds = len(reference.read_wav(audio)) / reference.RATE
    if seconds < 60:
        hear()
    times, work = [], []
    for _ in range(repeats):
        began, busy = time.perf_counter(), time.process_time()
        text = hear()
        times.append(time.perf_counter() - began)
        work.append(time.process_time() - busy)
    return {"factor": statistics.median(times) / seconds, "cpu_factor": statistics.median(work) / seconds, "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000, "text": text}


def call(address: str, path: str, body=None) -> dict:
    data = json.dumps(body).encode() if body is not None else None
    headers = {"content-type": "application/json", "prefer": "wait=60"}
    with urllib.request.urlopen(urllib.request.Request(f"http://{address}{path}", data, headers), timeout=3600) as answer:
        return json.loads(answer.read() or b"null")


def ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=5):
            return True
    except OSError:
        return False


def pinion(args, precision: str, audio: str, batch: int = 1) -> dict:
    """A fresh server on a loopback port, asked once unmeasured and once measured; memory is its worker's."""
    folder = Path(tempfile.mkdtemp())
    (folder / "cog.yaml").write_text(
        "native:\n  models:\n    - name: w\n      model: whisper\n      names: [pinion/w]\n      preload: true\n"
        f"      path: {args.weights.resolve()}\n      precision: {precision}\n      threads: {args.threads}\n      device: cpu\n"
        "  limits:\n    body_bytes: 200000000\n"
    )
    address = f"127.0.0.1:{args.port}"
    words = [str(args.pinion), "serve", "--listen", address, "--data", str(folder / "data"), "--config", str(folder / "cog.yaml")]
    with (folder / "log").open("w") as log:
        child = subprocess.Popen(words, stdout=log, stderr=log, text=True)
    try:
        for _ in range(1200):
            if ready(address):
                break
            time.sleep(0.1)
        encoded = base64.b64encode(Path(audio).read_bytes()).decode()
        given = {"audio": f"data:audio/wav;base64,{encoded}", "language": "en", "batch_size": batch}
        given["temperature_increment_on_fallback"] = 0
        short = Path(audio).stat().st_size < 2_000_000
        for _ in range(2 if short else 1):
            busy = family_cpu(child.pid)
            found = call(address, "/v1/models/pinion/w/predictions", {"input": given})
            while found["status"] in ("starting", "processing"):
                time.sleep(0.2)
                found = call(address, f"/v1/predictions/{found['id']}")
            busy = family_cpu(child.pid) - busy
        if found["status"] != "succeeded":
            raise SystemExit(f"{words}: {found['error']}")
        memory = max(peak_mb(pid) for pid in family(child.pid))
    finally:
        child.terminate()
        child.wait()
    metrics = found["metrics"]
    cpu = busy / max(metrics["audio_duration"], 1)
    return {"factor": metrics["real_time_factor"], "cpu_factor": cpu, "rss_mb": memory, "text": found["output"]["transcription"]}


def family(pid: int) -> list[int]:
    """A process and its children (Linux)."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += family(int(child))
    return found


def family_cpu(pid: int) -> float:
    ticks = 0
    for one in family(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_mb(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


def peer(args, engine: str, folder: str, audio: str, repeats: int) -> dict:
    words = [sys.executable, __file__, "--drive", engine, "--weights", folder, "--audio", audio]
    words += ["--threads", str(args.threads), "--runs", str(repeats)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{engine}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pinion", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--recordings", type=Path)
    parser.add_argument("--audio", help=argparse.SUPPRESS)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "peer-whisper")
    parser.add_argument("--port", type=int, default=5077)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.drive == "convert":
        joined(args.weights, args.cache), ggml(args.weights, args.cache)
        if args.long:
            long(args.recordings, args.cache)
        return
    if args.drive:
        print(json.dumps(drive(args.drive, str(args.weights), args.audio, args.threads, args.runs)))
        return
    if not args.recordings:
        parser.error("--recordings is needed")
    # In a process of its own: a child's peak begins with its parent's size.
    convert = ["--drive", "convert", "--weights", str(args.weights), "--recordings", str(args.recordings), "--cache", str(args.cache)]
    convert += ["--long"] if args.long else []
    subprocess.run([sys.executable, __file__, *convert], check=True)
    whole, file = args.cache / args.weights.name, args.cache / f"{args.weights.name}.ggml.bin"

    def measure(engine: str, audio: str, batch: int = 1) -> dict:
        if engine.startswith("pinion"):
            return pinion(args, ENGINES[engine.removesuffix(BATCHED)], audio, batch)
        return peer(args, engine, str(file if engine.startswith("whisper.cpp") else whole), audio, 1)

    rounds = {name: [] for name in ENGINES}
    for _ in range(args.runs):
        for engine in ENGINES:
            rounds[engine].append(measure(engine, str(args.recordings / "jfk.wav")))
    result = {"date": datetime.date.today().isoformat(), "machine": platform.processor() or platform.machine(),
              "cores": os.cpu_count(), "threads": args.threads, "runs": args.runs, "weights": args.weights.name, "short": {}}
    for engine, found in rounds.items():
        factors = [one["factor"] for one in found]
        median = statistics.median(factors)
        memory = statistics.median(one["rss_mb"] for one in found)
        cpu = statistics.median(one["cpu_factor"] for one in found)
        result["short"][engine] = {"factor": median, "factors": factors, "cpu_factor": cpu, "rss_mb": memory, "text": found[-1]["text"].strip()}
        print(f"{engine:20} {median:.3f} s per s of audio ({min(factors):.3f}-{max(factors):.3f}), {cpu:.3f} of CPU, {memory:.0f} MB")
    for precision in ("f32", "f16"):
        peers = [engine for engine, kind in ENGINES.items() if kind == precision and not engine.startswith("pinion")]
        best = min(peers, key=lambda engine: result["short"][engine]["factor"])
        own = f"pinion {precision}"
        ratios = [b["factor"] / a["factor"] for a, b in zip(rounds[own], rounds[best])]
        ratio = result["short"][best]["factor"] / result["short"][own]["factor"]
        result[f"ratio {precision}"] = {"to": best, "ratio": ratio, "rounds": ratios}
        print(f"{precision}: pinion is {ratio:.2f} times as fast as {best} ({min(ratios):.2f}-{max(ratios):.2f})")
    if args.long:
        result["long"] = {}
        for engine in [*ENGINES, *(engine + BATCHED for engine in ENGINES if engine.startswith(("pinion", "faster-whisper")))]:
            batch = BATCH if engine.endswith(BATCHED) else 1
            result["long"][engine] = measure(engine, str(long(args.recordings, args.cache)), batch)
            print(f"long, {engine:35} {result['long'][engine]['factor']:.4f} s per s of audio", flush=True)
        factor = {engine: found["factor"] for engine, found in result["long"].items()}
        for precision in ("f32", "f16"):
            own = f"pinion {precision}"
            peers = [engine for engine in factor if not engine.startswith("pinion") and ENGINES[engine.removesuffix(BATCHED)] == precision]
            alone = min((engine for engine in peers if not engine.endswith(BATCHED)), key=factor.get)
            best = min(peers, key=factor.get)
            ratios = {
                f"batched to {own} window by window": factor[own] / factor[own + BATCHED],
                f"window by window to {alone}": factor[alone] / factor[own],
                f"batched to {best}": factor[best] / factor[own + BATCHED],
            }
            result[f"ratio long {precision}"] = ratios
            for name, ratio in ratios.items():
                print(f"long, {own} {name}: {ratio:.2f} times as fast")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
