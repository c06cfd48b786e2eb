"""Files of a training run: checkpoints to resume from, and the adapter that replaces the last one at once."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError

from ..models.loading import default_checkpoint
from ..models.lora_weights import ADAPTER_CONFIG, is_adapter
from ..models.runs import RUNS, STATE_FILE, checkpoint_step, last_checkpoint, train_command
from ..utils.errors import InputError, first_line
from ..utils.io import atomic_folder, check_writable, read_json, with_filename, write_json
from .lora import PeftTrainingModule

CONFIG_FILE = "config.json"  # a run's settings, in its folder
DATA_SETTINGS = ("num_samples", "data_fingerprint")  # of these, no flag has the value
MANIFEST_FILE = "training.json"  # beside the weights, written last: settings, date and curve
# Of a finished adapter: two of rank 16 on SmolVLM have to fit into a bundle. Rounded to it, the shipped adapters answer
# as in float32; merged weights change by 1.8e-5, relative to their norm, and by 1.4e-4 in bfloat16.
ADAPTER_DTYPE = torch.float16


@contextlib.contextmanager
def saving(folder: str | Path) -> Iterator[None]:
    """Turn the errors of safetensors and torch on a full disk into an `InputError` about `folder`."""
    try:
        with with_filename(folder):
            yield
    except (SafetensorError, RuntimeError) as error:
        remedy = "check its permissions and the free space, then run the same command again to resume"
        raise InputError(folder, f"not saved ({first_line(error)})", remedy) from None


def previous_folder(output: Path) -> Path:
    """Return the folder that keeps the adapter which was in `output` before the present one."""
    return Path(f"{output}-previous")


def describe_difference(before: dict, now: dict) -> str:
    """Name the first setting that differs between two runs, with both values, and say if their data differ."""
    names = [name for name in now | before if before.get(name) != now.get(name)]
    settings = [name for name in names if name not in DATA_SETTINGS]
    parts = [f"--{name.replace('_', '-')} was {before.get(name)}, is {now.get(name)}" for name in settings[:1]]
    return ", and ".join(parts + ["the data changed"] * (len(names) > len(settings)))


def read_settings(file: Path) -> dict | None:
    """Return the settings in a run's `config.json` or an adapter's `training.json`; None if it has none to read."""
    settings = None
    with contextlib.suppress(InputError):
        settings = read_json(file)
    if isinstance(settings, dict) and file.name == MANIFEST_FILE:
        settings = settings.get("config")
    return settings if isinstance(settings, dict) else None


def is_already_trained(output: Path, settings: dict) -> bool:
    """Return whether `output` has the adapter of a finished run with equal settings."""
    return is_adapter(output) and read_settings(output / MANIFEST_FILE) == settings


def remove_rest(run_dir: Path, settings: dict) -> None:
    """Remove what a finished run killed at its very end has left; checkpoints of other settings stay."""
    if read_settings(run_dir / CONFIG_FILE) == settings:
        remove_checkpoints(run_dir)


def describe_kept(output: Path, settings: dict) -> str | None:
    """Say that the adapter in `output` will be kept, and in what its settings differ; None if there is none."""
    if not is_adapter(output):
        return None
    before = read_settings(output / MANIFEST_FILE)
    reason = "has unknown settings" if before is None else f"differs: {describe_difference(before, settings)}"
    return f"{output} {reason}; it will be kept as {previous_folder(output)} once this run is finished"


def resume_point(run_dir: Path, settings: dict) -> Path | None:
    """Return the checkpoint to resume from, or None after preparing the folder for a new run.

    Raises:
        InputError: the folder holds the checkpoints of a run with other settings.
    """
    file, checkpoint = run_dir / CONFIG_FILE, last_checkpoint(run_dir)
    before = read_settings(file)
    if checkpoint and before == settings:
        return checkpoint
    if checkpoint:
        reason = "they are unknown" if before is None else describe_difference(before, settings)
        problem = f"holds an unfinished run with other settings: {reason}"
        raise InputError(run_dir, problem, "resume with its settings, delete it, or choose another --run-dir")
    for part in run_dir.glob("checkpoint-*"):
        shutil.rmtree(part)
    write_json(file, settings)
    return None


def describe_progress(run_dir: Path, steps: int) -> str:
    """Say at which step an interrupted run of `steps` steps will resume."""
    checkpoint = last_checkpoint(run_dir)
    if checkpoint is None:
        return "no step is saved yet; the same command starts again"
    return f"the same command resumes at step {checkpoint_step(checkpoint)} of {steps} ({checkpoint})"


def remove_checkpoints(run_dir: Path, num_kept: int = 0) -> None:
    """Remove all but the newest checkpoints. The state goes first: half a checkpoint must not be resumed from."""
    found = sorted(run_dir.glob("checkpoint-*"), key=checkpoint_step)
    for checkpoint in found[: len(found) - num_kept]:
        (checkpoint / STATE_FILE).unlink(missing_ok=True)
        shutil.rmtree(checkpoint)


def read_manifest(folder: Path) -> dict:
    """Return date, config and curve of an adapter's training; nothing if it has no `training.json`."""
    file = folder / MANIFEST_FILE
    return read_json(file) if file.exists() else {}


def base_accuracy(manifest: dict) -> float | None:
    """Return the accuracy in percent before the first step; None if it is not known."""
    rows = manifest.get("curve", [])
    return next((row["eval_accuracy"] for row in rows if row.get("step") == 0 and "eval_accuracy" in row), None)


def print_base_accuracy(folder: Path) -> None:
    """Print the accuracy before a checkpoint's training, if it is known."""
    if (accuracy := base_accuracy(read_manifest(folder))) is not None:
        print(f"its base, before training: {accuracy:.1f} on the questions that measured progress")


def describe_next(folder: Path, part: str) -> str:
    """Say which command packs a finished run of the `part`, vlm or clip, or makes one."""
    if not (folder / MANIFEST_FILE).exists():
        return f"{train_command(part)} trains an adapter"
    flag = "" if folder == RUNS / part else f" --{part} {folder}"
    is_shipped = folder.resolve() == default_checkpoint(part).resolve()
    return f"`python3 bundle.py homework ID{f' --{part} shipped' if is_shipped else flag}` packs it"


def check_output_dirs(run_dir: Path, output: Path) -> None:
    """Check before any work that an adapter may be written to `output`: nothing else would be lost.

    Raises:
        InputError: it holds something else, or one of the folders cannot be written to.
    """
    if run_dir.is_file():
        raise InputError(run_dir, "is a file, expected a folder", "choose another --run-dir")
    check_writable(run_dir / CONFIG_FILE, remedy="choose another --run-dir")
    for folder in (output, previous_folder(output)) if is_adapter(output) else (output,):
        known = any((folder / name).exists() for name in (MANIFEST_FILE, ADAPTER_CONFIG))
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not known):
            problem = "already exists and is not an adapter; refusing to overwrite it"
            raise InputError(folder, problem, "choose another --output")
    check_writable(output, folder=True)


def save_adapter_atomically(module: PeftTrainingModule, output: Path, manifest: dict) -> None:
    """Write the adapter beside `output`, then swap the folders: a full disk or Ctrl-C leaves the old one whole.

    An adapter that was there is kept as `previous_folder`, in place of an older one.
    """
    keep = previous_folder(output) if is_adapter(output) else None
    with atomic_folder(output, keep) as new, saving(output):
        module.save_adapter(new, ADAPTER_DTYPE)
        write_json(new / MANIFEST_FILE, manifest)
