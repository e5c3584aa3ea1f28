"""Pinion beside a plain PyTorch + transformers loop: the same shape and dtype, random weights, in turn, one table. On a GPU machine
this is the one command that shows what the engine does there: numbers first, then speed.

    python3 benches/peer_torch.py --pinion target/release/pinion-cuda-80 --cuda-check cuda_check --device cuda:0 \\
        --out benches/results/DATE-GPU-llama.json
    python3 benches/peer_torch.py --pinion target/release/pinion --shape smollm2-135m --dtype f32 --batches 1,4 \\
        --prompt 64 --decode 32                                                              # the same on a CPU

Needs a python with torch and transformers (5.x), the executables and this repository; no network, no compiler, no weights.

1. `cuda_check --check` (crates/kernels/examples): every kernel against f64, on fresh random inputs.
2. `pinion weights synth` writes SmolLM2's shape in f16 and in bf16, transformers computes logits from those files in float32 on the
   CPU, and `pinion golden` compares the device's with them: prompts in parts through the library and the prompt kernels.
3. Speed at each batch, for every precision in --precisions: pinion, then torch (unquantised: --dtype), --runs times in turn; every
   measurement is a fresh process, speeds are medians. "of the copy" is what a step reads (weights once, keys and values of all
   predictions) over its median time, as a share of the device's copy bandwidth that the same process measured (reads and writes
   counted). torch's loop: one prefill of the whole batch, then a forward and an argmax per token with the default cache.
4. The same with --batch-invariant, which is what a prediction costs that says the same to the bit in any company.

Installs nothing. Exits 1 where numbers are wrong; speed is only told.
"""

import argparse
import datetime
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# As config.json has them.
SHAPES = {
    "llama-3-8b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
                       vocab_size=128256, max_position_embeddings=8192, rope_theta=500000.0, tie_word_embeddings=False),
    "smollm2-135m": dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                         vocab_size=49152, max_position_embeddings=8192, rope_theta=100000.0, tie_word_embeddings=True),
}
DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
CHECKED_SHAPE, CHECKED_TOKENS = "smollm2-135m", 300
CHILD_LIMIT_S = 3600


def run(argv: list[str], **words) -> subprocess.CompletedProcess:
    print("+", " ".join(map(str, argv)), file=sys.stderr, flush=True)
    return subprocess.run([str(word) for word in argv], timeout=CHILD_LIMIT_S, text=True, **words)


def lines(argv: list[str]) -> list[dict]:
    """The JSON objects that a child prints; none where it fails, which it then has said itself."""
    done = run(argv, stdout=subprocess.PIPE)
    if done.returncode != 0:
        print(f"ended with {done.returncode}: {argv[0]}", file=sys.stderr)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


# The peer ---------------------------------------------------------------------------------------------------------------


def drive(args) -> None:
    """One process of the peer: random weights, then every batch; a JSON object each."""
    import torch
    import transformers

    device, dtype = torch.device(args.device), getattr(torch, DTYPES[args.dtype])
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPES[args.shape])).eval()
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    vocabulary = SHAPES[args.shape]["vocab_size"]

    @torch.inference_mode()
    def measure(batch: int, decode: int) -> dict:
        prompts = torch.randint(vocabulary, (batch, args.prompt), device=device)
        wait()
        began = time.perf_counter()
        out = model(prompts, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        wait()
        prefill = time.perf_counter() - began
        began = time.perf_counter()
        for _ in range(decode):
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
        wait()
        seconds = time.perf_counter() - began
        return {"batch": batch, "prefill_tokens_per_s": batch * args.prompt / prefill,
                "decode_tokens_per_s": batch * decode / seconds, "token_p50_s": seconds / decode}

    for batch in args.batches:
        try:
            measure(batch, 2)
            result = measure(batch, args.decode)
        except torch.OutOfMemoryError as error:
            print(f"batch {batch}: {error}", file=sys.stderr)
            result = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if result:
            print(json.dumps(result | {"torch": torch.__version__, "transformers": transformers.__version__}), flush=True)


# Numbers ----------------------------------------------------------------------------------------------------------------


def reference(folder: Path, golden: Path) -> None:
    """transformers' logits from a folder of weights, float32 on the CPU, as `pinion golden` reads them. Greedy ids are left out: of
    random weights the best two tokens lie closer than any rounding."""
    import torch
    import transformers
    from safetensors.torch import save_file

    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(model.config.vocab_size, (1, CHECKED_TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits = model(ids, logits_to_keep=1).logits[0, -1]
    tensors = {"prompt_ids": ids[0], "last_logits": logits.contiguous(), "greedy_ids": torch.zeros(0, dtype=torch.int64)}
    save_file(tensors, golden)


def numbers(args) -> bool:
    sound = True
    if args.cuda_check:
        sound &= run([args.cuda_check.resolve(), "--check"]).returncode == 0
    for dtype in ["f16", "bf16"]:
        with tempfile.TemporaryDirectory() as there:
            folder, golden = Path(there) / "weights", Path(there) / "golden.safetensors"
            written = run([args.pinion, "weights", "synth", CHECKED_SHAPE, "--dtype", dtype, "-o", folder], stdout=subprocess.DEVNULL)
            if written.returncode != 0:
                return False
            reference(folder, golden)
            print(f"\n{CHECKED_SHAPE}, {dtype}, {CHECKED_TOKENS} tokens on {args.device} beside transformers in float32", flush=True)
            sound &= run([args.pinion, "golden", "llama", folder, golden, "--device", args.device]).returncode == 0
    return sound


# Speed ------------------------------------------------------------------------------------------------------------------


def pinion(args, precision: str, batches: list[int], *more: str) -> list[dict]:
    own = [] if precision == args.dtype else ["--precision", precision]
    threads = ["--threads", args.threads] if args.threads else []
    return lines([args.pinion, "bench", args.shape, "--synth", "--dtype", args.dtype, *own, "--device", args.device, *threads,
                  "--prompt-tokens", args.prompt, "--decode-tokens", args.decode, "--batch", ",".join(map(str, batches)), "--json", *more])


def torch_loop(args) -> list[dict]:
    words = ["--drive", "--shape", args.shape, "--dtype", args.dtype, "--device", args.device, "--prompt", args.prompt,
             "--decode", args.decode, "--batches", ",".join(map(str, args.batches)), "--threads", args.threads]
    return lines([sys.executable, __file__, *words])


def medians(rounds: list[list[dict]]) -> dict[int, dict]:
    by_batch: dict[int, list[dict]] = {}
    for result in (result for each in rounds for result in each):
        by_batch.setdefault(result["batch"], []).append(result)
    number = lambda key, results: isinstance(results[0][key], (int, float)) and not isinstance(results[0][key], bool)
    return {batch: {key: statistics.median(r[key] for r in results) if number(key, results) else results[0][key] for key in results[0]}
            for batch, results in by_batch.items()}


def speed(args) -> dict:
    rounds: dict[str, list[list[dict]]] = {}
    for _ in range(args.runs):
        for precision in args.precisions:
            rounds.setdefault(f"pinion {precision}", []).append(pinion(args, precision, args.batches))
        rounds.setdefault(f"torch {args.dtype}", []).append(torch_loop(args))
        few = [batch for batch in args.batches if batch in (1, 16, 64)] or args.batches[:1]
        rounds.setdefault(f"pinion {args.dtype}, batch-invariant", []).append(pinion(args, args.dtype, few, "--batch-invariant"))
    return {name: medians(each) for name, each in rounds.items()}


def table(args, all_results: dict) -> None:
    print(f"\n{args.shape}, random weights, {args.prompt} tokens read and {args.decode} said by each, on {args.device}\n")
    print("| engine, weights | batch | prefill, tokens/s | decode, tokens/s | a step, ms | read, GB/s | of the copy | of torch |")
    print("|---|---|---|---|---|---|---|---|")
    peer = all_results.get(f"torch {args.dtype}", {})
    for name, results in all_results.items():
        for batch, r in sorted(results.items()):
            read, most = r.get("read_bytes_per_s"), r.get("bandwidth_bytes_per_s")
            bytes_ = f"{read / 1e9:.0f} | {100 * read / most:.0f} %" if read and most else "- | -"
            times = f"{r['decode_tokens_per_s'] / peer[batch]['decode_tokens_per_s']:.2f}" if batch in peer else "-"
            print(f"| {name} | {batch} | {r['prefill_tokens_per_s']:.0f} | {r['decode_tokens_per_s']:.1f} | "
                  f"{1e3 * r['token_p50_s']:.3f} | {bytes_} | {times} |")


def asked(args, all_results: dict) -> None:
    """What issue and README ask for, beside what came out."""
    plain = all_results.get(f"pinion {args.dtype}", {})
    if 1 not in plain:
        return
    one = plain[1]
    # An engine that cannot tell how fast the memory is gives none.
    if one["read_bytes_per_s"] and one["bandwidth_bytes_per_s"]:
        print(f"\nbatch 1 reads {100 * one['read_bytes_per_s'] / one['bandwidth_bytes_per_s']:.0f} % of the copy bandwidth (asked on a GPU: 85 %)")
    if 64 in plain:
        print(f"64 at once: {plain[64]['decode_tokens_per_s'] / one['decode_tokens_per_s']:.1f} times batch 1 (asked: 25)")
    for precision, times in {"int8": 1.7, "fp8": 1.7, "q8_0": 1.7, "q4_0": 2.6}.items():
        other = all_results.get(f"pinion {precision}", {})
        if 1 in other:
            rate = other[1]["decode_tokens_per_s"] / one["decode_tokens_per_s"]
            print(f"{precision}: {rate:.2f} times {args.dtype} at batch 1 (asked: {times})")
    for batch, r in all_results.get(f"pinion {args.dtype}, batch-invariant", {}).items():
        ratio = lambda key: 100 * (plain[batch][key] / r[key] - 1)
        print(f"batch-invariant at batch {batch}: decode {ratio('decode_tokens_per_s'):+.0f} % of time, "
              f"prefill {ratio('prefill_tokens_per_s'):+.0f} %")


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--pinion", type=Path)
    args.add_argument("--cuda-check", type=Path, help="the example of crates/kernels, compiled")
    args.add_argument("--shape", choices=SHAPES, default="llama-3-8b")
    args.add_argument("--dtype", choices=DTYPES, default="bf16")
    args.add_argument("--precisions", help="default: the dtype, and on a GPU int8, fp8, q8_0 and q4_0")
    args.add_argument("--device", default="cpu", help="cpu or cuda:N")
    args.add_argument("--batches", default="1,2,4,8,16,32,64,128,256")
    args.add_argument("--prompt", type=int, default=512)
    args.add_argument("--decode", type=int, default=128)
    args.add_argument("--threads", type=int, default=0, help="of the CPU; 0: as many as each takes by itself")
    args.add_argument("--runs", type=int, default=1)
    args.add_argument("--only", choices=["numbers", "speed"])
    args.add_argument("--out", type=Path)
    args.add_argument("--drive", action="store_true", help=argparse.SUPPRESS)
    args = args.parse_args()
    args.batches = [int(batch) for batch in args.batches.split(",")]
    if args.drive:
        return drive(args)
    if not args.pinion:
        raise SystemExit("--pinion is needed: the executable")
    args.pinion = args.pinion.resolve()
    on_gpu = args.device != "cpu"
    args.precisions = args.precisions.split(",") if args.precisions else [args.dtype] + (["int8", "fp8", "q8_0", "q4_0"] if on_gpu else [])
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sound = args.only == "speed" or numbers(args)
    results = {} if args.only == "numbers" else speed(args)
    # Before anything is made of them: hours of measuring are not lost to a sum.
    if args.out:
        about = {"date": datetime.date.today().isoformat(), "machine": platform.machine(), "device": args.device, "shape": args.shape,
                 "dtype": args.dtype, "prompt_tokens": args.prompt, "decode_tokens": args.decode, "runs": args.runs, "numbers": bool(sound)}
        args.out.write_text(json.dumps(about | {"results": results}, indent=1) + "\n")
    if results:
        table(args, results)
        asked(args, results)
    if not sound:
        raise SystemExit("the numbers are WRONG: see above")


if __name__ == "__main__":
    main()
