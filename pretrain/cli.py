"""Pretraining as commands; torch is imported when one runs, so that help comes at once."""

from pathlib import Path

from homework.utils.cli import run as run_command
from homework.utils.errors import InputError
from homework.utils.io import write_json

from . import BASE_DIR

RUN_DIR = "runs/pretrain"
CONFIG_FILE = "config.json"  # a run's settings, in its folder


def run(
    config: str | None = None,
    stage: str | None = None,
    frames: str | None = None,
    data: str = "data",
    run_dir: str = RUN_DIR,
) -> None:
    """Make TuxNano from random weights: draw frames, train every stage, export. Run again, it resumes.

    Example: python -m pretrain run --frames train

    Args:
        config: a TOML file; by default that of the run, or else pretrain/cpu.toml, or pretrain/gpu.toml on a GPU.
        stage: train this one only, e.g. read, or vision-2 for the second part of a long one.
        frames: the config's sources to take, separated by commas; train is the course's, the others are drawn.
        data: the data folder.
        run_dir: folder of checkpoints and curves, and of the base in the end; it can be moved to another machine.
    """
    from .config import as_json
    from .run import Run

    settings = _load_config(config, frames, Path(run_dir))
    one = Run(settings, Path(data), Path(run_dir))
    for name in settings.stage_names:
        one.read_step(name)  # raises for a folder of other settings
    write_json(Path(run_dir) / CONFIG_FILE, as_json(settings))
    one.run(stage)


def pack(split: list[str], /, data: str = "data") -> None:
    """Pack the frames of splits into files of at most 60 MB, which all stages read, and other machines too.

    Example: python -m pretrain pack train own

    Args:
        split: folders of the data; the packs are written to its folder packs.
        data: the data folder.
    """
    from .packs import pack_split

    for name in split:
        for file in pack_split(Path(data), name):
            print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


def eval(weights: str = str(BASE_DIR), /, split: str = "valid", data: str = "data", held_out: bool = False) -> None:
    """Evaluate what the vision encoder predicts: accuracy by question type, and what limits it.

    Example: python -m pretrain eval runs/pretrain --split train --held-out

    Args:
        weights: a base's folder, or a run's, whose stage `vision` may be unfinished.
        split: folder of the data.
        data: the data folder.
        held_out: take the moments that training holds out only.
    """
    from homework.training.trainer import use_all_cores

    from .dataset import PretrainDataset
    from .evaluate import base_predictor, evaluate_views, format_report
    from .vision_stages import load_vision_stage

    use_all_cores()
    folder = Path(weights)
    is_run = (folder / CONFIG_FILE).exists() and (folder / "vision.pt").exists()
    settings = _load_config(None, None, folder)
    predict = load_vision_stage(settings, folder).predict if is_run else base_predictor(folder)
    keep = lambda moment: not held_out or moment % settings.held_out_period == 0
    views = PretrainDataset(Path(data), {split: 1.0}, keep)
    print("\n".join(format_report(evaluate_views(predict, views))))


def ablate(
    config: str | None = None,
    split: str | None = None,
    frames: str | None = None,
    data: str = "data",
    run_dir: str = "runs/ablate",
) -> None:
    """Measure what each part of the model brings: trained without it at a tenth of the steps. Run again, it resumes.

    Args:
        config: a TOML file, as in `run`.
        split: evaluate on this folder of the data; by default on the moments that training holds out.
        frames: the config's sources to take, separated by commas.
        data: the data folder.
        run_dir: folder with a run per part.
    """
    from .ablate import run_ablations

    settings = _load_config(config, frames, Path(run_dir))
    if settings.shape != "cells":
        raise InputError(config or run_dir, "only a model of shape cells has these parts", 'set shape = "cells"')
    print("\n".join(run_ablations(settings, Path(data), Path(run_dir), split)))


def processor(*, gguf: str, output: str = str(BASE_DIR)) -> None:
    """Write the tokenizer.

    Args:
        gguf: a GGUF file of SmolLM2, which holds its vocabulary.
        output: folder of the base.
    """
    from .assemble import make_tokenizer

    make_tokenizer(Path(gguf)).save_pretrained(output)


def _load_config(config: str | None, frames: str | None, run_dir: Path):
    """Load the named config, or else that of the run, or else the one for this machine."""
    from homework.models.loading import pick_device
    from homework.utils.io import read_json

    from .config import CPU_CONFIG, GPU_CONFIG, build_config, load_config

    known = run_dir / CONFIG_FILE
    if config is None and known.exists() and "stages" in (values := read_json(known)):
        return build_config(values, known, frames)
    file = GPU_CONFIG if pick_device().type == "cuda" else CPU_CONFIG
    return load_config(Path(config) if config else file, frames)


def main() -> None:
    """Run the command line."""
    run_command(run, pack, eval, ablate, processor)
