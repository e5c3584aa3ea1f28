"""Pinion's Cog API beside the real Cog server on one echo model: what a request costs beyond the model.

    python3 benches/peer_cog.py --pinion target/release/pinion --cog target/clients/cog-0.23.1/bin/python --out FILE.json

Both servers run at the same time on this machine and are asked in turn, A B A B: an echo of a few words, sync, one after
the other on one kept connection; then GET /health-check. Latencies are seen from here, so they hold the same cost of this
script. The health of ours is asked once more while weights are loaded. Figures: median and 99.9th percentile.
"""

import argparse
import http.client
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent / "tests/cog"
BODY = json.dumps({"input": {"text": "hello world", "pieces": 3}})
JSON = {"Content-Type": "application/json"}
WARM_UP = 100
PATIENCE_S = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    def __init__(self, argv, folder, env=None):
        self.port = free_port()
        own = {**os.environ, **(env or {}), "PORT": str(self.port)}
        self.began = time.perf_counter()
        self.process = subprocess.Popen(argv, cwd=folder, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)

    def ask(self, method, path, body=None):
        self.connection.request(method, path, body, JSON if body else {})
        answer = self.connection.getresponse()
        return answer.status, json.loads(answer.read())

    def wait_for(self, status):
        """Seconds from the start until the status, and until the first answer."""
        first = health = None
        while time.perf_counter() - self.began < PATIENCE_S:
            try:
                code, health = self.ask("GET", "/health-check")
            except (ConnectionError, http.client.HTTPException):
                self.connection.close()
                time.sleep(0.001)
                continue
            first = first or time.perf_counter() - self.began
            if health["status"] == status:
                return time.perf_counter() - self.began, first
            time.sleep(0.001)
        raise SystemExit(f"{status} never came: {health}")

    def timed(self, method, path, body=None):
        began = time.perf_counter()
        code, answer = self.ask(method, path, body)
        took = time.perf_counter() - began
        if code != 200:
            raise SystemExit(f"{method} {path}: {code} {answer}")
        return took

    def stop(self):
        self.process.kill()
        self.process.wait()


def figures(seconds):
    ordered = sorted(seconds)
    at = lambda part: ordered[min(len(ordered) - 1, int(part * len(ordered)))] * 1e3
    return {"median_ms": round(statistics.median(ordered) * 1e3, 3), "p99_ms": round(at(0.99), 3), "p999_ms": round(at(0.999), 3)}


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--pinion", required=True)
    words.add_argument("--cog", required=True, help="the python of an environment with cog")
    words.add_argument("--requests", type=int, default=2000)
    words.add_argument("--health", type=int, default=1000)
    words.add_argument("--out")
    args = words.parse_args()
    pinion, cog = str(Path(args.pinion).resolve()), Path(args.cog).absolute()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "cog.yaml").write_text("native: { model: echo, synth: nothing }\n")
        ours = Server([pinion, "cog", "--host", "127.0.0.1"], folder)
        ready_ours = ours.wait_for("READY")
        real_folder = folder / "real"
        (real_folder / ".cog").mkdir(parents=True)
        shutil.copy(TESTS / "run.py", real_folder)
        (real_folder / ".cog/openapi_schema.json").write_text(json.dumps(ours.ask("GET", "/openapi.json")[1]))
        path = f"{cog.parent}:{os.environ.get('PATH', '')}"
        real_env = {"PATH": path, "COG_PREDICT_TYPE_STUB": "run.py:Runner"}
        real = Server([str(cog), "-m", "cog.server.http", "--host", "127.0.0.1"], real_folder, real_env)
        ready_real = real.wait_for("READY")
        servers = {"pinion": ours, "cog": real}
        echo, health = {name: [] for name in servers}, {name: [] for name in servers}
        for number in range(WARM_UP + args.requests):
            for name, server in servers.items():
                # Its slot is free a moment after its answer.
                server.wait_for("READY")
                took = server.timed("POST", "/predictions", BODY)
                if number >= WARM_UP:
                    echo[name].append(took)
        for _ in range(args.health):
            for name, server in servers.items():
                health[name].append(server.timed("GET", "/health-check"))
        loading_folder = folder / "loading"
        loading_folder.mkdir()
        waits = f"native: {{ model: echo, synth: nothing, defaults: {{ load_waits_for: {folder}/never }} }}\n"
        (loading_folder / "cog.yaml").write_text(waits)
        loading = Server([pinion, "cog", "--host", "127.0.0.1"], loading_folder)
        _, first = loading.wait_for("STARTING")
        while_loading = [loading.timed("GET", "/health-check") for _ in range(args.health)]
        for server in [ours, real, loading]:
            server.stop()
    result = {
        "machine": f"{platform.machine()} {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "echo": {name: figures(seconds) for name, seconds in echo.items()},
        "echo_ratio": round(statistics.median(echo["pinion"]) / statistics.median(echo["cog"]), 3),
        "health": {name: figures(seconds) for name, seconds in health.items()},
        "health_while_loading": figures(while_loading),
        "first_answer_s": {"pinion": round(first, 3)},
        "ready_s": {"pinion": round(ready_ours[0], 3), "cog": round(ready_real[0], 3)},
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        Path(args.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
