"""Marks a made-up scene with the package that the reference pipeline uses, and writes the result as f32.

    python3 -m venv V && V/bin/pip install --no-deps invisible-watermark==0.2.0 PyWavelets==1.9.0 numpy \
        opencv-python-headless==5.0.0.93
    V/bin/python watermark.py          # imwatermark also wants torch, which it does not use here
"""
import sys
import types
from pathlib import Path

import numpy as np

# The package's front loads its neural methods too; only the wavelet's file is needed.
import importlib.util

spec = importlib.util.find_spec("imwatermark")
front = types.ModuleType("imwatermark")
front.__path__ = list(spec.submodule_search_locations)
sys.modules["imwatermark"] = front
from imwatermark.maxDct import EmbedMaxDct  # noqa: E402

MESSAGE = 0b101100111110110010010000011110111011000110011110
BITS = [int(bit) for bit in bin(MESSAGE)[2:]]
WIDTH, HEIGHT = 262, 37

y, x = np.mgrid[:HEIGHT, :WIDTH]
scene = np.stack([(x * 3 + y) % 256, (y * 2 + x // 2) % 256, (x * y // 7 + 40) % 256], axis=-1).astype(np.float32)
marked = EmbedMaxDct(BITS, wmLen=len(BITS)).encode(np.ascontiguousarray(scene[:, :, ::-1]))[:, :, ::-1]
marked = np.ascontiguousarray(marked, dtype="<f4")
Path(__file__).with_name("watermark.f32").write_bytes(marked.tobytes())
print(marked.shape, "largest change", np.abs(marked - scene).max())
