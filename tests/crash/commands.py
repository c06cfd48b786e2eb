"""Define the commands to kill: how to prepare a fresh folder, how to start them, and what their result is."""

import contextlib
import itertools
import json
import math
import os
import shutil
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from supertux.sample import sample_files

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable
NUM_FRAMES = 200  # of the sample, for `generate`
TRAINING_STEPS = 12
# `download` from a local server instead of the course's
DOWNLOAD = (
    "import sys; from supertux import download as d; d.URL = sys.argv.pop(); from homework.utils.cli import run; {}"
)
DOWNLOAD = DOWNLOAD.format("run(d.download, d.unpack)")


def unpack_frames(target: Path, count: int, split: str = "train") -> None:
    """Write the first frames of the sample's split, with their images."""
    target.mkdir(parents=True)
    frames = itertools.groupby(sample_files(split), key=lambda file: file[0].partition("_")[0])
    for _, files in itertools.islice(frames, count):
        for name, content in files:
            (target / name).write_bytes(content)


def link_tree(source: Path, target: Path) -> None:
    """Copy a folder by hard links where possible: commands replace files and never write into existing ones."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy(source, target)

    shutil.copytree(source, target, copy_function=link)


class Command:
    """Run one command. All runs read the folder `shared`; each run works in a fresh folder."""

    name: str
    work = None  # instead of `line`: a function for a process forked from this one

    def __init__(self, shared: Path):
        self.shared = shared

    def prepare(self, folder: Path) -> None:
        """Create and fill a fresh folder."""
        folder.mkdir()

    def line(self, folder: Path) -> list[str]:
        """Return the command line that works in the folder."""
        raise NotImplementedError

    def result(self, folder: Path):
        """Return what an undisturbed run and a killed one must agree on."""
        raise NotImplementedError

    def is_same(self, one, other) -> bool:
        """Return whether two results are the same."""
        return one == other

    def close(self) -> None:
        """Stop what was started for all runs."""


class Generate(Command):
    """Run `generate_qa generate`; the result is the annotation file's bytes."""

    name = "generate"

    def __init__(self, shared: Path):
        super().__init__(shared)
        unpack_frames(shared / "frames", NUM_FRAMES)

    def prepare(self, folder: Path) -> None:
        folder.mkdir()
        link_tree(self.shared / "frames", folder / "train")

    def line(self, folder: Path) -> list[str]:
        return [PYTHON, "-m", "homework.generate_qa", "generate", "--split", "train", "--data", str(folder)]

    def result(self, folder: Path) -> bytes:
        return (folder / "train/generated_qa_pairs.json").read_bytes()


class Bundle(Command):
    """Run `bundle.py`; the result is the zip's bytes."""

    name = "bundle"

    def line(self, folder: Path) -> list[str]:
        return [PYTHON, "bundle.py", "homework", "killed", "--output", str(folder)]

    def result(self, folder: Path) -> bytes:
        return (folder / "killed.zip").read_bytes()


class Render(Command):
    """Run `supertux render`; the result is the labels' bytes and the names of the images."""

    name = "render"

    def line(self, folder: Path) -> list[str]:
        flags = "--frames 36 --preset ld --tracks xr591,lighthouse --karts tux,gnu --workers 1".split()
        return [PYTHON, "-m", "supertux", "render", "--output", str(folder / "mine"), *flags]

    def result(self, folder: Path) -> dict:
        infos = {path.name: path.read_bytes() for path in (folder / "mine").glob("*_info.json")}
        return infos | {path.name: None for path in (folder / "mine").glob("*_im.jpg")}


class Train(Command):
    """Run `finetune train` on a tiny base; compare the loss curve and the weights, to float tolerance.

    Its processes are forked from this one, because importing takes longer than the whole training and writes no file.
    It saves every few steps, so that a short run has several checkpoints.
    """

    name = "train"

    def __init__(self, shared: Path):
        super().__init__(shared)
        for split in ("train", "valid"):
            unpack_frames(shared / "data" / split, 4, split)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork
        from homework import base_vlm, finetune  # noqa: F401
        from homework.generate_qa import generate
        from homework.labels import eval_sets  # noqa: F401
        from homework.training import trainer  # noqa: F401
        from tests.tiny_models import save_tiny_nano

        with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
            generate(split="train", data=shared / "data")
            save_tiny_nano(shared / "base")

    def prepare(self, folder: Path) -> None:
        folder.mkdir()
        link_tree(self.shared / "data", folder / "data")

    def work(self, folder: Path) -> None:
        """Run the command in a forked process."""
        from homework import finetune
        from homework.training import trainer
        from homework.utils import cli

        arguments = trainer.TrainingArguments
        trainer.TrainingArguments = lambda **given: arguments(**given | {"save_steps": 3, "logging_steps": 1})
        flags = ["--base", self.shared / "base", "--data", folder / "data", "--output", folder / "out"]
        flags += ["--run-dir", folder / "run", "--steps", TRAINING_STEPS, "--batch-size", 2, "--rank", 4]
        sys.argv = ["train", "train", *map(str, [*flags, "--learning-rate", 0.02, "--progress-questions", 5])]
        cli.run(finetune.train, finetune.test)

    def result(self, folder: Path) -> tuple[list[dict], dict]:
        from safetensors.numpy import load_file

        curve = json.loads((folder / "out/training.json").read_text())["curve"]
        # the last row depends on the process that finished: its seconds, and the mean loss of its own steps
        return [row for row in curve if "train_runtime" not in row], load_file(folder / "out/adapter_model.safetensors")

    def is_same(self, one: tuple, other: tuple) -> bool:
        (curve, weights), (other_curve, other_weights) = one, other
        if len(curve) != len(other_curve) or weights.keys() != other_weights.keys():
            return False
        is_curve_close = all(
            row.keys() == again.keys() and all(math.isclose(row[k], again[k], rel_tol=1e-4) for k in row)
            for row, again in zip(curve, other_curve, strict=True)
        )
        return is_curve_close and all(abs(weights[name] - other_weights[name]).max() < 1e-5 for name in weights)


class SlowServer(ThreadingHTTPServer):
    """Serve one file slowly, from any byte on."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, content: bytes, seconds: float):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.pause = content, seconds / max(1, len(content) // _Handler.piece)
        self.url = f"http://127.0.0.1:{self.server_port}/data.zip"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    piece = 1 << 16

    def do_GET(self) -> None:
        """Send the file, or the requested range."""
        content, requested = self.server.content, self.headers.get("Range")
        start = int(requested.removeprefix("bytes=").removesuffix("-")) if requested else 0
        self.send_response(200 if not requested else 206 if start < len(content) else 416)
        span = f"{start}-{len(content) - 1}" if start < len(content) else "*"
        if requested:
            self.send_header("Content-Range", f"bytes {span}/{len(content)}")
        self.send_header("Content-Length", str(len(content[start:])))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client was killed
            for at in range(start, len(content), self.piece):
                self.wfile.write(content[at : at + self.piece])
                time.sleep(self.server.pause)

    def log_message(self, *_) -> None:
        """Print nothing."""


class Download(Command):
    """Run `supertux download` from a slow server; the result is every file of the data folder."""

    name = "download"

    def __init__(self, shared: Path):
        super().__init__(shared)
        files = [(split, *file) for split in ("train_demo", "valid", "valid_grader") for file in sample_files(split)]
        with zipfile.ZipFile(shared / "source.zip", "w") as archive:
            for split, name, content in files[:900]:
                archive.writestr(f"data/{split}/{name}", content)
        self.server = SlowServer((shared / "source.zip").read_bytes(), seconds=1.5)

    def line(self, folder: Path) -> list[str]:
        return [PYTHON, "-c", DOWNLOAD, "download", "--data", str(folder / "data"), self.server.url]

    def result(self, folder: Path) -> dict:
        files = (path for path in (folder / "data").rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files if not path.name.endswith(".part")}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


COMMANDS = {command.name: command for command in (Generate, Render, Train, Bundle, Download)}


def why_missing(name: str) -> str | None:
    """Return why a command cannot run here, or None."""
    if name != "render":
        return None
    from homework.utils.errors import InputError
    from supertux.render.engines import check_installed

    try:
        check_installed("ld")
    except InputError as error:
        return str(error)
    return None
