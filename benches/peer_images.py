"""The ops of benches/images.rs in PyTorch (oneDNN), at the same sizes: run it right before or after, on as many threads.

    python benches/peer_images.py [threads]

Prints the median of five, in milliseconds of the clock and of the processor, and GFLOP/s of both. A processor's time says
more where other programs run beside it.
"""

import sys
import time

import torch
import torch.nn.functional as F

TIMES = 5


def case(name, flop, run):
    run()
    clock, cpu = [], []
    for _ in range(TIMES):
        a, b = time.perf_counter(), time.process_time()
        run()
        clock.append(time.perf_counter() - a)
        cpu.append(time.process_time() - b)
    clock, cpu = sorted(clock)[TIMES // 2], sorted(cpu)[TIMES // 2]
    threads = torch.get_num_threads()
    print(f"{name}: {1e3 * clock:.2f} ms, {flop / clock / 1e9:.1f} G/s; "
          f"{1e3 * cpu:.2f} ms of processor, {threads * flop / cpu / 1e9:.1f} G/s on {threads} threads", flush=True)


def conv(channels, out, side, stride, layout):
    x = torch.randn(1, channels, side, side).to(memory_format=layout)
    layer = torch.nn.Conv2d(channels, out, 3, stride, 1).to(memory_format=layout)
    flop = 2 * (side // stride) ** 2 * out * channels * 9
    name = "NHWC" if layout == torch.channels_last else "NCHW"
    case(f"conv 3x3/{stride} {channels} to {out}, {side}x{side}, {name}", flop, lambda: layer(x))


def dense(rows, channels, out, gated):
    x, layer = torch.randn(rows, channels), torch.nn.Linear(channels, out)

    def run():
        y = layer(x)
        if gated:
            hidden, gate = y.chunk(2, dim=-1)
            y = hidden * F.gelu(gate)
        return y

    case(f"dense{' + geglu' if gated else ''} {rows} x {channels} to {out}", 2 * rows * channels * out, run)


def attention(queries, positions, heads, dim):
    q, k, v = (torch.randn(1, heads, n, dim) for n in (queries, positions, positions))
    flop = 4 * queries * positions * heads * dim
    case(f"attention {queries} x {positions}, {heads} heads of {dim}", flop,
         lambda: F.scaled_dot_product_attention(q, k, v))


def group_norm(channels, side):
    x, layer = torch.randn(1, channels, side, side), torch.nn.GroupNorm(32, channels)
    case(f"group norm + silu, {side}x{side} of {channels}", channels * side * side, lambda: F.silu(layer(x)))


def main():
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    with torch.inference_mode():
        for layout in (torch.contiguous_format, torch.channels_last):
            conv(320, 320, 64, 1, layout)
            conv(640, 640, 32, 1, layout)
            conv(1280, 1280, 16, 1, layout)
            conv(320, 320, 64, 2, layout)
        dense(4096, 640, 5120, False)
        dense(4096, 640, 5120, True)
        dense(1024, 1280, 1280, False)
        attention(4096, 4096, 10, 64)
        attention(4096, 77, 10, 64)
        attention(4096, 4096, 1, 512)
        group_norm(320, 64)
        group_norm(1280, 32)


main()
