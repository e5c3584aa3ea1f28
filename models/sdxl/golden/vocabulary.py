"""Fetches the vocabulary of CLIP that the tests of the tokenizers read, through the machine's own pip.

    python vocabulary.py FILE

FILE becomes OpenAI's bpe_simple_vocab_16e6.txt.gz (PyPI open_clip_torch==3.3.0, MIT), checked by digest.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

DIGEST = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"

file = Path(sys.argv[1])
if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == DIGEST:
    raise SystemExit(0)
with tempfile.TemporaryDirectory() as scratch:
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "open_clip_torch==3.3.0"]
    subprocess.run(pip, check=True, cwd=scratch, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as archive:
        data = archive.read("open_clip/bpe_simple_vocab_16e6.txt.gz")
found = hashlib.sha256(data).hexdigest()
if found != DIGEST:
    raise SystemExit(f"{file.name}: expected sha256 {DIGEST}, got {found}")
file.parent.mkdir(parents=True, exist_ok=True)
file.write_bytes(data)
