"""The error of each step against diffusers, for every scheduler, as docs/sdxl-error.svg.

    cargo xtask golden sdxl BASE models/sdxl/golden/run-DDIM.safetensors > OUT/DDIM.txt     # and so for each scheduler
    python chart.py OUT

Reads the lines "latents_after_step_N ERROR" that the word prints. Needs nothing but Python.
"""

import math
import re
import sys
from pathlib import Path

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 420, 70, 40, 190, 60
# Decades of max|a-b| / max|b| that are drawn.
LOWEST, HIGHEST = -8, -3
COLOURS = ["#1b6ca8", "#d1495b", "#2e933c", "#8d5fb0", "#e08e1b", "#444444", "#0a9396"]


def read(file):
    found = re.findall(r"^latents_after_step_(\d+) +([0-9.e+-]+)", file.read_text(), re.M)
    return [float(error) for _, error in sorted(found, key=lambda pair: int(pair[0]))]


def place(share, error):
    across = LEFT + share * (WIDTH - LEFT - RIGHT)
    decade = min(max(math.log10(max(error, 10**LOWEST)), LOWEST), HIGHEST)
    return across, TOP + (HIGHEST - decade) / (HIGHEST - LOWEST) * (HEIGHT - TOP - BOTTOM)


def main():
    runs = {file.stem: read(file) for file in sorted(Path(sys.argv[1]).glob("*.txt"))}
    assert runs and all(runs.values()), "no run with a step"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">SDXL, 20 steps: latents after each step beside diffusers, max|a-b| / max|b|, f32</text>',
    ]
    for decade in range(LOWEST, HIGHEST + 1):
        y = place(0, 10**decade)[1]
        limit = decade == HIGHEST
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{"#c00" if limit else "#ddd"}"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">1e{decade}</text>'
        )
    parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{TOP + 4}" fill="#c00">allowed</text>')
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = place(share, 1)[0]
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{share:.0%}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 18}" text-anchor="middle">of the run</text>')
    for number, (name, errors) in enumerate(runs.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [place((at + 1) / len(errors), error) for at, error in enumerate(errors)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        y = TOP + 24 + 18 * number
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
            f'<line x1="{WIDTH - RIGHT + 8}" x2="{WIDTH - RIGHT + 28}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>'
            f'<text x="{WIDTH - RIGHT + 34}" y="{y + 4}">{name} {max(errors):.0e}</text>'
        )
    parts.append("</svg>")
    target = Path(__file__).resolve().parents[3] / "docs" / "sdxl-error.svg"
    target.parent.mkdir(exist_ok=True)
    target.write_text("\n".join(parts) + "\n")
    print(target)


if __name__ == "__main__":
    main()
