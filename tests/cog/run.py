"""The echo model as a Python runner, for the real Cog server: the same input, the same words, the same metrics."""

import hashlib
import os
import time

from cog import BaseRunner, ConcatenateIterator, Input, Path, current_scope, streaming


SERVER = os.getppid()


def wait_for(path: str | None) -> None:
    """Until the file is there; without one, for ever. A worker whose server is gone goes too."""
    while not (path and os.path.exists(path)):
        if os.getppid() != SERVER:
            os._exit(1)
        time.sleep(0.001)


class Runner(BaseRunner):
    def setup(self) -> None:
        if os.environ.get("ECHO_LOAD_WAITS_FOR"):
            wait_for(os.environ["ECHO_LOAD_WAITS_FOR"])
        if os.environ.get("ECHO_LOAD_FAILS"):
            raise RuntimeError(os.environ["ECHO_LOAD_FAILS"])

    @streaming
    def run(
        self,
        text: str = Input(),
        pieces: int = Input(default=1, ge=1, le=5000),
        temperature: float = Input(default=0.7, ge=0, le=5),
        style: str = Input(default="plain", choices=["plain", "loud"]),
        hold: bool = Input(default=False),
        until: str | None = Input(default=None),
        log: str | None = Input(default=None, max_length=50),
        follows: str | None = Input(default=None),
        fail: str | None = Input(default=None),
        crash: str | None = Input(default=None),
        panic: str | None = Input(default=None),
        file: Path | None = Input(default=None),
        gives: str | None = Input(default=None),
        mime: str | None = Input(default=None),
        load_says: str | None = Input(default=None),
        load_fails: str | None = Input(default=None),
        load_waits_for: str | None = Input(default=None),
    ) -> ConcatenateIterator[str]:
        if log:
            print(log)
        if file:
            content = file.read_bytes()
            text = f"{len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}"
        count = max(1, min(pieces, len(text)))
        ends = [-(-piece * len(text) // count) for piece in range(count + 1)]
        for begin, end in zip(ends, ends[1:]):
            yield text[begin:end]
        if hold or until:
            wait_for(until)
        scope = current_scope()
        scope.record_metric("input_token_count", len(text.split()))
        scope.record_metric("output_token_count", count)
        if fail:
            raise RuntimeError(fail)
