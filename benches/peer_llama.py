"""Pinion beside llama.cpp on one GGUF: the numbers behind the README's table.

    python -m venv peers && peers/bin/pip install -r benches/peers.txt
    peers/bin/python benches/peer_llama.py --pinion target/release/pinion \\
        --gguf SmolLM2-135M-Instruct.Q4_1.gguf --out benches/results/DATE-MACHINE-llama.json

One run, alternating A B C A B C: pinion, then llama.cpp through two wheels (the faster counts). Every measurement is a
fresh process; files are in the page cache. It measures the file as shipped and a rewrite with an F16 embedding, which it
keeps in --cache. Speeds are medians; a ratio is pinion's median over the faster wheel's, and in brackets the least and
the largest ratio of one round. Memory is the peak PSS of the process tree (Linux), taken in processes of their own
so that looking does not slow what is timed; the price of the bare Python driver stands beside it.
Without --pinion only the peers are measured. Installs nothing.
"""

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

DRIVER = Path(__file__).with_name("peer_llama_driver.py")
PEERS = ["xllamacpp", "cyllama"]
MEMORY_RUNS = 3
SAMPLE_EVERY_S = 0.01
CHILD_LIMIT_S = 600
FLAGS_WORTH_KNOWING = "avx avx2 fma f16c avx_vnni avx512f avx512bw avx512vl avx512_vnni avx512_bf16 amx_int8 neon asimddp i8mm".split()

# case: prompt tokens, decoded tokens, batch, and which of the driver's numbers it is for
CASES = {
    "prefill 512": (512, 128, 1, "prefill_tokens_per_s"),
    "decode at 512": (512, 128, 1, "decode_tokens_per_s"),
    "decode": (16, 128, 1, "decode_tokens_per_s"),
    "decode, batch 4": (16, 128, 4, "decode_tokens_per_s"),
    "decode, batch 8": (16, 96, 8, "decode_tokens_per_s"),
}
SHAPES = sorted({case[:3] for case in CASES.values()})
MEMORY_SHAPE = (512, 128, 1)
# The only one that transformers is given: its prefill and its decode come out of one run, which takes it half a minute.
SLOW_PEER_SHAPE = (512, 128, 1)


def command(engine: str, file: Path, shape: tuple, args) -> list[str]:
    prompt, decode, batch = map(str, shape)
    if engine == "pinion":
        own = ["--prompt-tokens", prompt, "--decode-tokens", decode, "--batch", batch, "--threads", str(args.threads)]
        return [str(args.pinion), "bench", args.model, *own, "--weights", str(file), "--json", *args.pinion_args.split()]
    own = ["--prompt", prompt, "--decode", decode, "--batch", batch, "--threads", str(args.threads), "--ctx", str(args.ctx)]
    return [sys.executable, str(DRIVER), engine, str(file), *own]


def run(argv: list[str], watch=None) -> dict:
    """Runs a child to its end; its last line of output is one JSON object."""
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=errors, text=True, env=quiet_environment())
        if watch:
            watch(child.pid)
        try:
            out, _ = child.communicate(timeout=CHILD_LIMIT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            raise SystemExit(f"{' '.join(argv)} took longer than {CHILD_LIMIT_S} s")
        if child.returncode != 0:
            errors.seek(0)
            raise SystemExit(f"{' '.join(argv)} ended with {child.returncode}:\n{errors.read()[-2000:]}")
    text = out.strip()
    return json.loads(text if text.startswith("{") and "\n{" not in text else text.splitlines()[-1])


def quiet_environment() -> dict:
    """Thread counts are arguments; nothing in the caller's environment may change them."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "MKL_", "RAYON_"))}


# Memory ---------------------------------------------------------------------------------------------------------------


def tree(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            pass  # it ended meanwhile
    return found


def pss_bytes(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def peak_pss_bytes(argv: list[str]) -> int:
    peak, over = 0, threading.Event()

    def sample(pid):
        nonlocal peak
        while not over.is_set():
            peak = max(peak, sum(map(pss_bytes, tree(pid))))
            time.sleep(SAMPLE_EVERY_S)

    sampler = None

    def watch(pid):
        nonlocal sampler
        sampler = threading.Thread(target=sample, args=(pid,))
        sampler.start()

    try:
        run(argv, watch)
    finally:
        over.set()
        sampler.join()
    return peak


# Measuring ------------------------------------------------------------------------------------------------------------


def spread(values: list) -> dict:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": values}


def measure_file(file: Path, engines: list[str], args) -> dict:
    file.read_bytes()  # into the page cache
    rounds = {shape: {e: [] for e in engines} for shape in SHAPES}
    for shape in SHAPES:
        for i in range(args.runs):
            for engine in engines:
                if engine == "transformers" and shape != SLOW_PEER_SHAPE:
                    continue
                result = run(command(engine, file, shape, args))
                rounds[shape][engine].append(result)
                say(f"{file.name} {shape} round {i + 1}/{args.runs} {engine}: "
                    f"prefill {result['prefill_tokens_per_s']:.1f}, decode {result['decode_tokens_per_s']:.1f}")  # fmt: skip
    speeds = {}
    for name, (*shape, key) in CASES.items():
        series = {e: [r[key] for r in results] for e, results in rounds[tuple(shape)].items() if results}
        speeds[name] = {e: spread(values) for e, values in series.items()}
        peer = max((p for p in PEERS if p in series), key=lambda p: speeds[name][p]["median"])
        speeds[name]["peer"] = peer
        if "pinion" in series:
            pairs = [ours / theirs for ours, theirs in zip(series["pinion"], series[peer])]
            ratio = speeds[name]["pinion"]["median"] / speeds[name][peer]["median"]
            speeds[name]["ratio"] = {"of_medians": ratio, "min": min(pairs), "max": max(pairs)}
    memory = {}
    for engine in [*engines, "none"]:
        memory[engine] = spread([peak_pss_bytes(command(engine, file, MEMORY_SHAPE, args)) for _ in range(MEMORY_RUNS)])
        say(f"{file.name} peak PSS {engine}: {memory[engine]['median'] / 1e6:.0f} MB")
    return {
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "bytes": file.stat().st_size,
        "tokens_per_s": speeds,
        "peak_pss_bytes": memory,
        "last_reports": {e: rounds[SHAPES[-1]][e][-1] for e in engines if rounds[SHAPES[-1]][e]},
    }


def machine() -> dict:
    info = Path("/proc/cpuinfo").read_text()
    fields = dict(line.split(":", 1) for line in info.split("\n\n")[0].splitlines() if ":" in line)
    fields = {k.strip(): v.strip() for k, v in fields.items()}
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "cpu": fields.get("model name", platform.machine()),
        "cores": os.cpu_count(),
        "flags": [f for f in FLAGS_WORTH_KNOWING if f in flags],
        "kernel": platform.release(),
        "load_average_before": os.getloadavg(),
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(report: dict) -> str:
    lines = []
    for label, file in report["files"].items():
        engines = list(file["peak_pss_bytes"])
        lines += [f"## {label}: {file['file']}", "", "| | " + " | ".join(engines) + " | pinion / llama.cpp |"]
        lines.append("|---" * (len(engines) + 2) + "|")
        for name, row in file["tokens_per_s"].items():
            cells = [f"{row[e]['median']:.1f} ({row[e]['min']:.1f}-{row[e]['max']:.1f})" if e in row else "" for e in engines]
            r = row.get("ratio")
            cells.append(f"{r['of_medians']:.2f} ({r['min']:.2f}-{r['max']:.2f})" if r else "")
            lines.append(f"| {name}, tok/s | " + " | ".join(cells) + " |")
        peaks = {e: m["median"] for e, m in file["peak_pss_bytes"].items()}
        ratio = f"{peaks['pinion'] / min(peaks[p] for p in PEERS):.2f}" if "pinion" in peaks else ""
        lines.append("| peak PSS, MB | " + " | ".join(f"{peaks[e] / 1e6:.0f}" for e in engines) + f" | {ratio} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pinion", type=Path, help="the release binary; without it only the peers run")
    parser.add_argument("--model", default="smollm2", help="pinion's name for the model")
    parser.add_argument("--pinion-args", default="", help="more words for `pinion bench`")
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ctx", type=int, default=1024, help="llama.cpp's context, all sequences together")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "pinion-peers")
    parser.add_argument("--transformers", action="store_true", help="also transformers in float32 (peers.txt says what it needs)")
    args = parser.parse_args()
    if args.runs < 5:
        say("fewer than 5 runs: for a look, not for a table")

    from rewrite_f16_embedding import rewrite

    args.cache.mkdir(parents=True, exist_ok=True)
    rewritten = args.cache / f"{args.gguf.stem}.f16-embedding.gguf"
    if not rewritten.exists():
        rewrite(args.gguf, partial := rewritten.with_suffix(".part"))
        partial.rename(rewritten)

    engines = (["pinion"] if args.pinion else []) + PEERS + (["transformers"] if args.transformers else [])
    report = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "threads": args.threads,
        "ctx": args.ctx,
        "runs": args.runs,
        "packages": {p: importlib.metadata.version(p) for p in engines if p != "pinion"},
        "files": {
            "as shipped": measure_file(args.gguf, engines, args),
            "F16 embedding": measure_file(rewritten, engines, args),
        },
    }
    report["machine"]["load_average_after"] = os.getloadavg()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


if __name__ == "__main__":
    main()
