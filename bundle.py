"""Pack the submission: `python3 bundle.py homework ID` writes ID.zip.

Needs nothing but this file and Python's standard library, so it packs any package, outside the virtual environment too.
That is why it has its own atomic write: the `homework` that it packs may import torch, or fail to import.
"""

import argparse
import contextlib
import difflib
import json
import os
import re
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

PACKAGE = "homework"  # the bundle's only top-level folder
MAX_BYTES = 50_000_000  # the course says 50 MB; this is the stricter of its two readings
NUM_LARGEST = 3  # files or folders to name
CHUNK_BYTES = 1 << 20
PARTS, SHIPPED = ("vlm", "clip"), "shipped"
MANIFEST, ADAPTER_CONFIG = "training.json", "adapter_config.json"  # a finished run has both
WEIGHTS, CLIP_WEIGHTS = "adapter_model.safetensors", "additional_weights.pt"

# Files that training and running leave behind and that no grader needs. Hidden files and folders are left out too.
# Folders called checkpoint-* are packed: a submission may load its model from one.
EXCLUDED_FOLDERS = ("__pycache__", "global_step*", "runs", "logs", "wandb", "cache", "*.egg-info")
EXCLUDED_FILES = (
    *("optimizer*.pt", "optimizer*.bin", "scheduler*.pt", "scaler*.pt", "rng_state*.pth"),
    *("trainer_state.json", "training_args.bin", "events.out.tfevents.*", "views-*.npy"),
    *("*.pyc", "*.pyo", "*.log", "*.tmp", "*.part", "*.swp", "*~"),
)

Files = dict[str, Path]  # name inside the package, with `/` -> file on disk


class BundleError(Exception):
    """One line: what is wrong and what to do."""


def is_excluded(name: str, patterns: tuple[str, ...]) -> bool:
    """Return whether a file's or folder's bare name is hidden or matches one of `patterns`."""
    return name.startswith(".") or any(fnmatch(name, pattern) for pattern in patterns)


def collect_files(folder: Path) -> tuple[Files, list[str]]:
    """Return the files to pack, and the names of those left out; raises BundleError for a link to a folder."""
    files, excluded = {}, []
    for place, folders, names in os.walk(folder, onerror=_raise):  # os.walk skips unreadable folders by default
        relative = Path(place).relative_to(folder)
        excluded += [f"{(relative / name).as_posix()}/" for name in folders if is_excluded(name, EXCLUDED_FOLDERS)]
        folders[:] = [name for name in folders if not is_excluded(name, EXCLUDED_FOLDERS)]
        for name in folders:
            if (Path(place) / name).is_symlink():
                raise BundleError(f"{Path(place) / name}: a link to a folder; put a copy of the folder in its place")
        for name in names:
            if is_excluded(name, EXCLUDED_FILES):
                excluded.append((relative / name).as_posix())
            else:
                files[(relative / name).as_posix()] = Path(place) / name
    return dict(sorted(files.items())), sorted(excluded)


def _raise(error: OSError) -> None:
    raise error


def choose_run(folder: Path, part: str, choice: str | None) -> tuple[Path, str]:
    """Choose a part's weights to pack, by default a finished `runs/PART`; say where they come from.

    Args:
        choice: a run's folder, or `shipped`; None takes the default.

    Raises:
        BundleError: the chosen folder is not a finished run of this part.
    """
    shipped, run = folder / "weights" / part, Path(choice or f"runs/{part}")
    unfinished = describe_unfinished(run, part) if choice != SHIPPED else None
    if choice != SHIPPED and is_finished(run):
        found, why = ("clip", "") if (run / CLIP_WEIGHTS).exists() else ("vlm", f" (no {CLIP_WEIGHTS})")
        if found != part:
            problem = f"a {found.upper()}'s checkpoint{why}, expected one of a {part.upper()}"
            raise BundleError(f"{run}: {problem}; choose another --{part}, or pack it with --{found} {run}")
        return run, describe_run(run, str(run)) + (f"\nwarning: {unfinished}" if unfinished else "")
    if choice not in (None, SHIPPED):
        raise BundleError(unfinished or f"{run}: not a finished run; train one, or choose another --{part}")
    if choice is None and not unfinished and (run.exists() or Path(f"{run}-run").exists()):
        unfinished = f"{run} is not finished"
    source = f", since {unfinished}\n     {shipped.as_posix()}" if unfinished else f" ({shipped.as_posix()})"
    return shipped, describe_run(shipped, f"shipped{source}")


def describe_unfinished(run: Path, part: str) -> str | None:
    """Say at which step a run was interrupted, and which command resumes it; None if no step of it is left."""
    output = str(run).removesuffix("-run")
    states = Path(f"{output}-run").glob("checkpoint-*/trainer_state.json")
    step = max((int(state.parent.name.rpartition("-")[2]) for state in states), default=None)
    flag = "" if output == f"runs/{part}" else f" --output {output}"
    command = f"`python -m homework.{'finetune' if part == 'vlm' else part} train{flag}`"
    return step and f"{output}-run is unfinished (step {step}): {command} resumes it"


def is_finished(run: Path) -> bool:
    """Return whether a folder holds a finished run: its manifest is written last."""
    return (run / MANIFEST).is_file() and (run / ADAPTER_CONFIG).is_file()


def describe_run(run: Path, source: str) -> str:
    """Describe weights by source, date, data and base, as far as their files say; these must be JSON."""
    date = split = None
    base = _read_json(run / ADAPTER_CONFIG).get("base_model_name_or_path")
    if (run / MANIFEST).is_file():
        manifest = _read_json(run / MANIFEST)
        date, split = manifest.get("date"), manifest.get("config", {}).get("split")
    line = f"{source}: trained {date or 'at an unknown date'} on {split or 'unknown data'}, base {base}"
    if base and (os.path.isabs(base) or os.path.isfile(os.path.join(base, "config.json"))):
        line += "\nwarning: no grader can reach that base, a folder of this machine; train on tux_nano or a hub model"
    return line


def _read_json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BundleError(f"{file}: not readable as JSON ({error}); train again, or choose another run") from None
    return content if isinstance(content, dict) else {}


def find_largest(files: Files, by_folder: bool = False) -> list[tuple[int, str]]:
    """Return (bytes on disk, name) of the largest files, or of the folders with most in their files."""
    sizes = Counter()
    for name, file in files.items():
        sizes[(name.rpartition("/")[0] or ".") if by_folder else name] += file.stat().st_size
    return sorted(((size, name) for name, size in sizes.items()), key=lambda item: (-item[0], item[1]))[:NUM_LARGEST]


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` that becomes `path` only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    try:
        yield Path(name)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp makes 0600
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # that of a full disk
            error.filename = str(path)
        raise


def write_zip(files: Files, target: Path) -> None:
    """Write the files as a zip; the same files give the same bytes, whenever and by whomever they were written.

    Raises:
        BundleError: the zip would be larger than `MAX_BYTES`; nothing is written then.
    """
    with atomic_write(target) as temporary:
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, file in files.items():
                _add(archive, file, f"{PACKAGE}/{name}")
                if archive.fp.tell() > MAX_BYTES:
                    raise BundleError(_too_large(target, files))
        if temporary.stat().st_size > MAX_BYTES:  # the list of contents at the end counts too
            raise BundleError(_too_large(target, files))


def _add(archive: zipfile.ZipFile, file: Path, name: str) -> None:
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED
    info.create_system = 3  # Unix, also where it is packed on Windows
    info.external_attr = 0o100644 << 16
    info.file_size = file.stat().st_size  # so that a file over 2 GB gets the wide header it needs
    with open(file, "rb") as source, archive.open(info, "w") as packed:
        while chunk := source.read(CHUNK_BYTES):
            packed.write(chunk)
            if archive.fp.tell() > MAX_BYTES:
                return  # the caller refuses; no need to compress the rest


def _too_large(target: Path, files: Files) -> str:
    listed = [*find_largest(files, by_folder=True), *find_largest(files)]
    names = ", ".join(f"{name} ({size / 1e6:.1f} MB)" for size, name in listed)
    names += "".join(f"; {name} has {describe_adapter(file)}" for name, file in files.items() if file.name == WEIGHTS)
    remedy = f"make it smaller, most is in {names}; a lower --rank, and F16 for F32, make adapters smaller"
    return f"{target}: the bundle exceeds {MAX_BYTES / 1e6:.0f} MB; {remedy}"


def describe_adapter(weights: Path) -> str:
    """Describe an adapter by its rank and the precision of its weights, as far as its files say."""
    rank = dtype = "unknown"
    with contextlib.suppress(BundleError, ValueError, OSError, AttributeError):
        rank = _read_json(weights.with_name(ADAPTER_CONFIG)).get("r", rank)
        with open(weights, "rb") as file:  # safetensors: the header's size in 8 bytes, then the header as JSON
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), CHUNK_BYTES)))
        dtype = "/".join(sorted({tensor["dtype"] for tensor in header.values() if "dtype" in tensor}))
    return f"rank {rank} in {dtype}"


def bundle(folder: Path, target: Path, runs: dict[str, Path] | None = None) -> tuple[Files, list[str]]:
    """Pack `folder` into `target`, with `runs[part]` as `weights/PART`; return the files, and what was left out.

    Raises:
        BundleError: no such folder, not a package, or too large.
    """
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder; name the folder of the package, `{PACKAGE}`")
    if not (folder / "__init__.py").is_file():
        raise BundleError(f"{folder}: not a package, it has no __init__.py; name the folder of the package")
    files, excluded = collect_files(folder)
    for part, run in (runs or {}).items():
        if run.resolve() == (folder / "weights" / part).resolve():
            continue
        files = {name: file for name, file in files.items() if not name.startswith(f"weights/{part}/")}
        files |= {f"weights/{part}/{name}": file for name, file in collect_files(run)[0].items()}
    files = {name: files[name] for name in sorted(files) if files[name].resolve() != target.resolve()}
    write_zip(files, target)
    return files, excluded


def _id(text: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: letters, digits, `_`, `-` and `.` only")
    return text.removesuffix(".zip")


class _Parser(argparse.ArgumentParser):
    """A parser that suggests the nearest flag for a mistyped one."""

    def error(self, message: str) -> None:
        """Print usage and one line on stderr, and exit with status 2."""
        wrong = re.search(r"unrecognized arguments:.*?(--[\w-]+)", message)
        nearest = difflib.get_close_matches(wrong[1], self._option_string_actions, 1) if wrong else []
        super().error(f"{message}. Did you mean {nearest[0]}?" if nearest else message)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = _Parser(
        "bundle.py",
        description="Pack the submission into ID.zip, with the models in runs/vlm and runs/clip if they are finished.",
        epilog=f"Example: python3 bundle.py {PACKAGE} ID",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=120),
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, help=f"folder of the package: {PACKAGE}")
    parser.add_argument("id", metavar="ID", type=_id, help="your id; the bundle is ID.zip")
    for part in PARTS:
        default = f"runs/{part} if finished, else {SHIPPED}"
        parser.add_argument(f"--{part}", metavar="DIR", help=f"run to pack, or `{SHIPPED}` [default: {default}]")
    parser.add_argument("--output", metavar="DIR", type=Path, default=Path(), help="where to write it [default: .]")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors [default: off]")
    return parser.parse_args(arguments)


def main() -> None:
    """Run the command line."""
    options = parse()
    target, runs, lines = options.output / f"{options.id}.zip", {}, []
    try:
        for part in PARTS:
            choice = getattr(options, part)
            if (options.folder / "weights" / part).is_dir():
                runs[part], line = choose_run(options.folder, part, choice)
                lines.append(f"{part.upper():5}{line}")
            elif choice:
                raise BundleError(f"{options.folder}: has no folder weights/{part}; leave --{part} out")
        if lines and not options.quiet:
            print("\n".join(lines), flush=True)
        files, excluded = bundle(options.folder, target, runs)
        if not options.quiet:
            print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, {len(files)} files; the largest are")
            for size, name in find_largest(files):
                print(f"{size / 1e6:8.1f} MB  {name}")
            if excluded:
                print(f"left out: {', '.join(excluded)}")
            sys.stdout.flush()
    except BundleError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # the reader has ended, as in `... | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}; check the path, its permissions and the free space")
    except KeyboardInterrupt:
        print(f"interrupted: {target} is as it was; run the same command again", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
