"""One measurement of one peer, in its own process: peer_llama.py starts it. Prints one JSON object.

    python peer_llama_driver.py ENGINE FILE --prompt 512 --decode 128 --batch 1 --threads 2 --ctx 1024

The order of work is that of `pinion bench`: load, one warm-up, then timed: every sequence's prompt in one call, then
`decode` steps of one token per sequence. Tokens are fixed, nothing is sampled, as llama-bench does. Imports as little as
it can, because its memory is measured; ENGINE `none` imports the same and loads nothing.
"""

import json
import sys
import time


def token(i: int) -> int:
    """Any token will do, but not always the same one."""
    return 1000 + (i * 7919) % 30000


class XLlamaCpp:
    """llama.cpp's C API as the xllamacpp wheel exports it, through ctypes. The two parameter structs are passed as
    opaque blocks larger than themselves, of which only the leading, stable fields are touched."""

    def __init__(self, path: str, batch: int, threads: int, ctx: int):
        import ctypes as c
        import importlib.util

        folder = importlib.util.find_spec("xllamacpp").submodule_search_locations[0]

        class Params(c.Structure):
            _fields_ = [("n_ctx", c.c_uint32), ("n_batch", c.c_uint32), ("n_ubatch", c.c_uint32), ("n_seq_max", c.c_uint32), ("rest", c.c_uint8 * 496)]  # fmt: skip

        class Batch(c.Structure):
            _fields_ = [
                ("n_tokens", c.c_int32),
                ("token", c.POINTER(c.c_int32)),
                ("embd", c.c_void_p),
                ("pos", c.POINTER(c.c_int32)),
                ("n_seq_id", c.POINTER(c.c_int32)),
                ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
                ("logits", c.POINTER(c.c_int8)),
            ]

        self.lib = lib = c.CDLL(f"{folder}/xllamacpp.abi3.so")

        def declare(name, result, *arguments):
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
            return function

        quiet = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
        self.quiet = quiet(lambda level, text, user: None)
        declare("llama_log_set", None, quiet, c.c_void_p)(self.quiet, None)
        declare("llama_backend_init", None)()
        model_params = declare("llama_model_default_params", Params)()
        load = declare("llama_model_load_from_file", c.c_void_p, c.c_char_p, Params)
        self.model = load(path.encode(), model_params)
        params = declare("llama_context_default_params", Params)()
        shape = (params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max)
        assert shape == (512, 2048, 512, 1), f"this xllamacpp lays its parameters out differently: {shape}"
        params.n_ctx, params.n_seq_max = ctx, batch
        self.ctx = declare("llama_init_from_model", c.c_void_p, c.c_void_p, Params)(self.model, params)
        assert self.model and self.ctx, "llama.cpp could not load the file"
        declare("llama_set_n_threads", None, c.c_void_p, c.c_int32, c.c_int32)(self.ctx, threads, threads)
        self.info = declare("llama_print_system_info", c.c_char_p)().decode()
        memory = declare("llama_get_memory", c.c_void_p, c.c_void_p)(self.ctx)
        clear = declare("llama_memory_clear", None, c.c_void_p, c.c_bool)
        self.clear = lambda: clear(memory, False)
        self.decode = declare("llama_decode", c.c_int32, c.c_void_p, Batch)
        self.synchronize = declare("llama_synchronize", None, c.c_void_p)
        self.batch = declare("llama_batch_init", Batch, c.c_int32, c.c_int32, c.c_int32)(ctx, 0, 1)

    def step(self, rows):
        """rows: (token, position, sequence, wanted) each."""
        b = self.batch
        b.n_tokens = len(rows)
        for i, (tok, pos, seq, wanted) in enumerate(rows):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = tok, pos, 1, wanted
            b.seq_id[i][0] = seq
        assert self.decode(self.ctx, b) == 0
        self.synchronize(self.ctx)


class Cyllama:
    """llama.cpp through cyllama's thin wrapper."""

    def __init__(self, path: str, batch: int, threads: int, ctx: int):
        from cyllama.llama import llama_cpp

        llama_cpp.disable_logging()
        model_params = llama_cpp.LlamaModelParams()
        self.model = llama_cpp.LlamaModel(path_model=path, params=model_params)
        params = llama_cpp.LlamaContextParams()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = ctx, 2048, 512, batch
        params.n_threads = params.n_threads_batch = threads
        self.ctx = llama_cpp.LlamaContext(model=self.model, params=params)
        self.batch = llama_cpp.LlamaBatch(n_tokens=ctx, embd=0, n_seq_max=1)
        self.clear = lambda: self.ctx.kv_cache_clear(False)
        self.info = f"ggml {llama_cpp.ggml_version()}"

    def step(self, rows):
        self.batch.clear()
        for tok, pos, seq, wanted in rows:
            self.batch.add(tok, pos, [seq], bool(wanted))
        self.ctx.decode(self.batch)
        self.ctx.synchronize()


class Transformers:
    """transformers in float32 on a folder in the hub's layout, or on a GGUF, which it dequantises."""

    def __init__(self, path: str, batch: int, threads: int, ctx: int):
        import os.path

        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        folder, name = os.path.split(path)
        where = {"pretrained_model_name_or_path": folder, "gguf_file": name} if name.endswith(".gguf") else {"pretrained_model_name_or_path": path}  # fmt: skip
        self.torch, self.model = torch, AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
        self.info = f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
        self.sequences, self.cache = batch, None

    def clear(self):
        self.cache = None

    def step(self, rows):
        ids = self.torch.tensor([r[0] for r in rows]).view(self.sequences, -1)
        with self.torch.inference_mode():
            out = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values


class Nothing:
    """The price of the Python process itself."""

    info = ""

    def __init__(self, *_):
        import ctypes  # noqa: F401  what XLlamaCpp needs

    def clear(self):
        pass

    def step(self, rows):
        pass


ENGINES = {"xllamacpp": XLlamaCpp, "cyllama": Cyllama, "transformers": Transformers, "none": Nothing}


def measure(engine: str, path: str, prompt: int, decode: int, batch: int, threads: int, ctx: int) -> dict:
    assert batch * (prompt + decode) <= ctx, "the context is too small for this measurement"
    clock = time.perf_counter
    start = clock()
    it = ENGINES[engine](path, batch, threads, ctx)
    loaded = clock()
    prompts = [(token(seq * prompt + i), i, seq, i == prompt - 1) for seq in range(batch) for i in range(prompt)]
    steps = [[(token(pos), pos, seq, True) for seq in range(batch)] for pos in range(prompt, prompt + decode)]
    it.step(prompts)
    it.step(steps[0])
    it.clear()
    begin = clock()
    it.step(prompts)
    prefilled = clock()
    for rows in steps:
        it.step(rows)
    done = clock()
    return {
        "engine": engine,
        "info": it.info,
        "load_s": loaded - start,
        "time_to_first_token_s": prefilled - begin,
        "prefill_tokens_per_s": batch * prompt / (prefilled - begin),
        "decode_tokens_per_s": batch * decode / (done - prefilled),
        "prompt_tokens": prompt,
        "decode_tokens": decode,
        "batch": batch,
        "threads": threads,
    }


def main() -> None:
    engine, path, *rest = sys.argv[1:]
    options = {key.removeprefix("--"): int(value) for key, value in zip(rest[::2], rest[1::2])}
    print(json.dumps(measure(engine, path, **options)), flush=True)


if __name__ == "__main__":
    main()
