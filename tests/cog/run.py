"""The echo model as a Python runner, for the real Cog server: the same input, the same words, the same metrics."""

import os
import time

from cog import BaseRunner, ConcatenateIterator, Input, Path, current_scope, streaming


class Runner(BaseRunner):
    def setup(self) -> None:
        waits_for = os.environ.get("ECHO_LOAD_WAITS_FOR")
        while waits_for and not os.path.exists(waits_for):
            time.sleep(0.001)
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
            text = f"{os.path.getsize(file)} bytes"
        count = max(1, min(pieces, len(text)))
        ends = [-(-piece * len(text) // count) for piece in range(count + 1)]
        for begin, end in zip(ends, ends[1:]):
            yield text[begin:end]
        while hold or (until and not os.path.exists(until)):
            time.sleep(0.001)
        scope = current_scope()
        scope.record_metric("input_token_count", len(text.split()))
        scope.record_metric("output_token_count", count)
        if fail:
            raise RuntimeError(fail)
