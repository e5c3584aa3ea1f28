"""Rewrites a GGUF with its token embedding in F16 and every other tensor untouched.

    python rewrite_f16_embedding.py IN.gguf OUT.gguf

The head is tied to it, and llama.cpp multiplies a Q8_0 head by activations rounded to 8 bits; with an F16 head both sides
read the same bytes and keep the activations. (Every Q4_1 matrix still gets rounded activations in llama.cpp.)
"""

import sys
from pathlib import Path

import gguf
import numpy as np


def rewrite(source: Path, target: Path) -> None:
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, arch=reader.get_field("general.architecture").contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = field.types[0]
        writer.add_key_value(key, field.contents(), kind, field.types[-1] if kind is gguf.GGUFValueType.ARRAY else None)
    for t in reader.tensors:
        if t.name == "token_embd.weight":
            writer.add_tensor(t.name, gguf.dequantize(t.data, t.tensor_type).astype(np.float16))
        else:
            writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    rewrite(Path(sys.argv[1]), Path(sys.argv[2]))
