"""Get onnxruntime-web from npm, pinned by version and digest."""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from homework.utils.errors import InputError, first_line

VERSION = "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # npm's integrity
ARCHIVE = f"onnxruntime-web-{VERSION}.tgz"
FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")  # the WebAssembly backend, all that the page needs
REMEDY = f"install npm (apt install npm), or put {ARCHIVE} from the npm registry there"


def copy_runtime(cache: Path, folder: Path) -> None:
    """Put the runtime's files into `folder`; its archive is downloaded into `cache` unless it is there.

    Raises:
        InputError: npm is missing or fails, or the archive is not the pinned one.
    """
    archive = cache / ARCHIVE
    if not archive.is_file():
        _download(archive)
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if digest != SHA512:
        raise InputError(archive, f"not onnxruntime-web {VERSION}: its SHA-512 is {digest}", "delete it, and run again")
    with tarfile.open(archive) as package:
        for name in FILES:
            with package.extractfile(f"package/dist/{name}") as source, open(folder / name, "wb") as target:
                shutil.copyfileobj(source, target)


def _download(archive: Path) -> None:
    """Download the package by npm."""
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(archive, "no such file, and no npm to download it", REMEDY)
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as temporary:
        command = [npm, "pack", "--silent", f"onnxruntime-web@{VERSION}", "--pack-destination", temporary]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise InputError(archive, f"npm cannot download it ({first_line(ValueError(done.stderr))})", REMEDY)
        (Path(temporary) / ARCHIVE).replace(archive)
