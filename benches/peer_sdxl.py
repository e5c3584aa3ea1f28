"""Pinion beside diffusers + PyTorch on the same random weights of an SDXL: steps per second, decoding, time to image, memory.

    python -m venv peers && peers/bin/pip install -r benches/peers_sdxl.txt
    target/release/pinion weights synth sdxl-small --dtype f32 -o FOLDER      # on a GPU: sdxl, f16
    peers/bin/python benches/peer_sdxl.py --pinion target/release/pinion --weights FOLDER [--device cuda:0] \\
        [--side 512] [--steps 10] [--threads 2] --out benches/results/DATE-MACHINE-sdxl.json

Both paint one image per round by K_EULER with guidance (two calls of the net in one), in turn, each in a fresh process that
painted one step before it is measured; loading is not counted. Pinion is `pinion bench`, the peer diffusers' own pipeline
with PyTorch's attention, eager, f32 on a processor and f16 on a GPU. The operations of a step, over its processor time,
are told as a share of what multiply-adds alone come to, which Pinion measures in each round: that holds beside other work
too. A ratio is the peer's median time over Pinion's, in brackets the least and largest of one round: above 1 Pinion is
faster. Memory is the peak resident set of the process on a processor, the peak that PyTorch or the driver's process list
tells on a GPU. Installs nothing.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

PROMPT, NEGATIVE, GUIDANCE = "A brass orrery on a desk, morning light", "blurry", 7.5


def peer(weights, device, side, steps, threads):
    """diffusers in this process."""
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    gpu = device != "cpu"
    began = time.perf_counter()
    dtype = torch.float16 if gpu else torch.float32
    pipe = StableDiffusionXLPipeline.from_pretrained(weights, torch_dtype=dtype, add_watermarker=False).to(device)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    load_s = time.perf_counter() - began

    def now():
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def paint(steps):
        marks, worked = [], []

        def after(_pipe, _step, _timestep, tensors):
            marks.append(now())
            worked.append(time.process_time())
            return tensors

        began = now()
        latents = pipe(
            PROMPT, negative_prompt=NEGATIVE, guidance_scale=GUIDANCE, height=side, width=side, output_type="latent",
            num_inference_steps=steps, callback_on_step_end=after, generator=torch.Generator().manual_seed(1),
        ).images
        middle = now()
        pipe.vae.decode(latents.to(pipe.vae.dtype) / pipe.vae.config.scaling_factor)
        end = now()
        each = [b - a for a, b in zip(marks, marks[1:])]
        # The first step's beginning is not told: it is taken to be as long as the others.
        step = statistics.median(each) if each else middle - began
        processor = (worked[-1] - worked[0]) / (len(worked) - 1) if each else 0.0
        prompt = max(marks[0] - step - began, 0.0) if marks else 0.0
        return {
            "prompt_s": prompt, "step_p50_s": step, "steps_per_s": 1 / (statistics.fmean(each) if each else step),
            "step_processor_s": processor, "decode_s": end - middle, "image_s": end - began,
        }

    paint(2)
    result = paint(steps)
    peak = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {**result, "load_s": load_s, "peak_bytes": peak, "versions": {"torch": torch.__version__}}


def pinion(program, weights, device, side, steps, threads, config):
    words = [program, "bench", "sdxl", "--config", config, "--device", device, "--side", str(side), "--steps", str(steps)]
    done = subprocess.run([*words, "--threads", str(threads), "--json"], stdout=subprocess.PIPE, check=True)
    result = json.loads(done.stdout)
    return {**result, "peak_bytes": result["peak_rss_bytes"]}


def shares(rounds):
    """What a step's operations come to for each second that a thread was on a processor, beside one thread's multiply-adds
    alone, which Pinion measures in each round; nothing on a GPU, where nobody measures it."""
    if not all(row["pinion"]["operations_per_processor_s"] and row["diffusers"]["step_processor_s"] for row in rounds):
        return {}
    found = {}
    for who in ("pinion", "diffusers"):
        held = []
        for row in rounds:
            ours = row["pinion"]
            operations = ours["operations_per_s"] / ours["steps_per_s"]
            speed = ours["operations_per_processor_s"] if who == "pinion" else operations / row[who]["step_processor_s"]
            held.append(speed / ours["peak_operations_of_one_thread_per_s"])
        found[who] = {"median": statistics.median(held), "min": min(held), "max": max(held)}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pinion")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out")
    parser.add_argument("--peer", action="store_true", help="the peer alone, in this process; JSON on stdout")
    words = parser.parse_args()
    shape = (words.weights, words.device, words.side, words.steps, words.threads)
    if words.peer:
        print(json.dumps(peer(*shape)))
        return
    config = os.path.join(os.path.dirname(os.path.abspath(words.weights)), "peer-sdxl-cog.yaml")
    model = {"name": "sdxl", "model": "sdxl", "path": os.path.abspath(words.weights)}
    with open(config, "w") as file:
        json.dump({"native": {"models": [model]}}, file)
    rounds = []
    for number in range(words.rounds):
        ours = pinion(words.pinion, *shape, config)
        again = [sys.executable, __file__, "--peer", "--weights", words.weights, "--device", words.device]
        again += ["--side", str(words.side), "--steps", str(words.steps), "--threads", str(words.threads)]
        theirs = json.loads(subprocess.run(again, stdout=subprocess.PIPE, check=True).stdout)
        rounds.append({"pinion": ours, "diffusers": theirs})
        print(f"round {number + 1}: a step {ours['step_p50_s']:.3f} s, diffusers {theirs['step_p50_s']:.3f} s", file=sys.stderr)
    print(f"{words.side} x {words.side}, {words.steps} steps, guided, {words.device}, {words.threads} threads")
    table = {}
    for name in ("step_p50_s", "decode_s", "image_s", "peak_bytes"):
        ours, theirs = ([each[who][name] for each in rounds] for who in ("pinion", "diffusers"))
        ratios = [b / a for a, b in zip(ours, theirs)]
        table[name] = {
            "pinion": statistics.median(ours), "diffusers": statistics.median(theirs),
            "ratio": statistics.median(theirs) / statistics.median(ours), "ratio_min": min(ratios), "ratio_max": max(ratios),
        }
        row = table[name]
        print(f"{name:12} pinion {row['pinion']:.4g}  diffusers {row['diffusers']:.4g}  "
              f"ratio {row['ratio']:.2f} [{row['ratio_min']:.2f} to {row['ratio_max']:.2f}]")
    share = shares(rounds)
    if share:
        print("of a thread's multiply-adds, measured in each round, by processor time: "
              + ", ".join(f"{who} {each['median']:.0%} [{each['min']:.0%} to {each['max']:.0%}]" for who, each in share.items()))
    if words.out:
        result = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "machine": platform.processor() or platform.machine(), "device": rounds[0]["pinion"]["device"],
            "weights": os.path.basename(words.weights), "side": words.side, "steps": words.steps,
            "threads": words.threads, "table": table, "share_of_multiply_add_peak": share, "rounds": rounds,
        }
        with open(words.out, "w") as file:
            json.dump(result, file, indent=1)


main()
