"""LoRA training with the transformers Trainer, shared by the VLM and CLIP: resume, evaluation, TensorBoard."""

import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from ..labels.rows import add_image_paths
from ..models.loading import pick_device, pick_dtype
from ..utils.errors import InputError, first_line
from ..utils.io import apply_umask, check_writable, read_json, with_filename, write_json
from ..utils.parallel import available_cores
from ..utils.progress import is_quiet
from .lora import PeftTrainingModule

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"  # what the Trainer writes last into a checkpoint
CONFIG_FILE = "config.json"  # a run's settings, in its folder
MANIFEST_FILE = "training.json"  # beside the weights, written last: settings, date and curve
NUM_EVALUATIONS = 4  # per run


@dataclass(frozen=True)
class TrainingConfig:
    """All settings that determine a run; a stopped run is only resumed with equal ones.

    Args:
        learning_rate: its maximum.
        num_samples, data_fingerprint: size and digest of the training set, so that another set is another run.
    """

    base: str
    split: str
    steps: int
    batch_size: int
    learning_rate: float
    rank: int
    seed: int
    num_samples: int
    data_fingerprint: str


def use_all_cores() -> None:
    """Let torch use as many threads as there are cores, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cores())


def validation_rows(make: Callable[[dict, int, int], list[dict]], count: int, data_dir: Path) -> list[dict]:
    """Return a small validation set for in-training evaluation; empty (with a warning) if `valid` is unavailable.

    Args:
        make: `balanced_pairs` or `multiple_choice` of `eval_sets`.
        count: how many rows.
    """
    from ..labels.eval_sets import split_scenes

    try:
        return add_image_paths(make(split_scenes(data_dir, "valid"), count, 1), data_dir)
    except InputError as error:
        logger.info(f"no evaluation while training: {error}")
        return []


class LengthGroupedBatches(LengthGroupedSampler):
    """Group views with about as many questions in a batch, so that little is padded.

    The order depends on seed and epoch alone, so a resumed run continues in it.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; accelerate calls this before each one."""
        self.epoch = epoch

    def __iter__(self):
        self.generator = torch.Generator().manual_seed(self.seed + 7919 * self.epoch)
        return super().__iter__()


@contextlib.contextmanager
def _saving(folder: str | Path) -> Iterator[None]:
    """Turn the errors of safetensors and torch on a full disk into an `InputError` about `folder`."""
    try:
        with with_filename(folder):
            yield
    except (SafetensorError, RuntimeError) as error:
        remedy = "check its permissions and the free space, then run the same command again to resume"
        raise InputError(folder, f"not saved ({first_line(error)})", remedy) from None


class AdapterTrainer(Trainer):
    """A Trainer of a `PeftTrainingModule`: its checkpoints are adapters, its evaluation is a benchmark."""

    def __init__(self, *args, evaluate_model: Callable[[], dict[str, float]], **kwargs):
        super().__init__(*args, **kwargs)
        self.evaluate_model = evaluate_model

    def _get_train_sampler(self, train_dataset: Dataset | None = None):
        lengths = getattr(self.train_dataset, "lengths", None)
        if lengths is None:
            return super()._get_train_sampler(train_dataset)
        # grouped by the batch of all processes together, so that their number does not change its content
        return LengthGroupedBatches(self.args.train_batch_size * self.args.world_size, lengths, self.args.seed)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        self.accelerator.unwrap_model(self.model).save_adapter(output_dir or self.args.output_dir)

    def _save_checkpoint(self, *args, **kwargs) -> None:
        with _saving(self.args.output_dir):
            super()._save_checkpoint(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.accelerator.unwrap_model(self.model).load_adapter(resume_from_checkpoint)

    def evaluate(self, *_, **__) -> dict[str, float]:
        """Return the benchmark's numbers, under names that TensorBoard groups."""
        self.model.eval()
        results = self.evaluate_model() if self.is_world_process_zero() else {}
        metrics = {f"eval_{name}": value for name, value in results.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint. The Trainer writes its state last, so one without it was cut short."""
    complete = []
    for state in folder.glob(f"checkpoint-*/{STATE_FILE}"):
        with contextlib.suppress(ValueError, OSError, KeyError, TypeError):
            complete.append((json.loads(state.read_text())["global_step"], state.parent))
    return max(complete, default=(0, None))[1]


def _resume_point(run_dir: Path, config: TrainingConfig) -> Path | None:
    """Return the checkpoint to resume from, or None after preparing the folder for a new run.

    Raises:
        InputError: the folder holds the checkpoints of a run with other settings.
    """
    file, checkpoint = run_dir / CONFIG_FILE, last_checkpoint(run_dir)
    if checkpoint and file.exists() and read_json(file) == asdict(config):
        return checkpoint
    if checkpoint:
        problem = "holds an unfinished run with other settings"
        raise InputError(run_dir, problem, "delete it, or choose another --run-dir")
    for part in run_dir.glob("checkpoint-*"):
        shutil.rmtree(part)
    write_json(file, asdict(config))
    return None


def fit(
    module: PeftTrainingModule,
    dataset: Dataset,
    collate: Callable[[list], dict],
    config: TrainingConfig,
    run_dir: Path,
    output: Path,
    evaluate: Callable[[], dict[str, float]],
) -> None:
    """Train, or resume a stopped run, then put the adapter into `output`.

    Args:
        config: its batch is shared by all processes that `accelerate launch` starts.
        run_dir: folder for checkpoints and TensorBoard; its checkpoints are removed once the run is finished.
        evaluate: returns the numbers to log, `NUM_EVALUATIONS` times per run.

    Raises:
        InputError: a place cannot be written to, or settings do not fit.
    """
    check_output_dir(output)
    use_all_cores()
    num_processes = int(os.environ.get("WORLD_SIZE", 1))  # set by `accelerate launch` and torchrun
    if config.batch_size % num_processes:
        problem = f"{config.batch_size} views cannot be split evenly among {num_processes} processes"
        raise InputError("--batch-size", problem, "choose a multiple of their number")
    arguments = TrainingArguments(
        output_dir=str(run_dir),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size // num_processes,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(50, config.steps // 10),
        weight_decay=0.0,
        optim="adamw_torch_fused",
        bf16=pick_dtype(pick_device()) == torch.bfloat16,
        logging_steps=max(1, min(20, config.steps // 5)),
        eval_strategy="steps",
        eval_steps=max(1, config.steps // NUM_EVALUATIONS),
        save_strategy="steps",
        save_steps=max(1, min(100, config.steps // 2)),
        save_total_limit=2,
        report_to=["tensorboard"],
        disable_tqdm=is_quiet() or not sys.stderr.isatty(),  # lines of numbers in its place
        remove_unused_columns=False,
        label_names=[],
        seed=config.seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
    )
    # without a launcher one of several GPUs: split among replicas, a batch would not be the config's
    arguments._n_gpu = min(1, arguments.n_gpu)
    with arguments.main_process_first(local=False, desc="looking for checkpoints"):
        resume = _resume_point(run_dir, config)
    if resume:
        logger.info(f"resuming from {resume}")
    trainer = AdapterTrainer(
        module, arguments, data_collator=collate, train_dataset=dataset, eval_dataset=dataset, evaluate_model=evaluate
    )
    if is_quiet():
        trainer.remove_callback(PrinterCallback)
    with with_filename(run_dir):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if trainer.is_world_process_zero():
        date = time.strftime("%Y-%m-%d %H:%M")
        manifest = {"date": date, "config": asdict(config), "curve": trainer.state.log_history}
        save_adapter_atomically(module, output, manifest)
        for checkpoint in run_dir.glob("checkpoint-*"):
            (checkpoint / STATE_FILE).unlink(missing_ok=True)  # first: half a checkpoint must not be resumed from
            shutil.rmtree(checkpoint)
        logger.info(f"saved {output}")


def check_output_dir(output: Path) -> None:
    """Check before training that an adapter may be written to `output`: nothing else would be lost."""
    known = (output / MANIFEST_FILE, output / "adapter_config.json")
    if output.is_file() or (output.is_dir() and any(output.iterdir()) and not any(file.exists() for file in known)):
        problem = "already exists and is not an adapter; refusing to overwrite it"
        raise InputError(output, problem, "choose another --output")
    check_writable(output, folder=True)


def save_adapter_atomically(module: PeftTrainingModule, output: Path, manifest: dict) -> None:
    """Write the adapter beside `output`, then swap the folders: a full disk or Ctrl-C leaves the old one whole."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        with _saving(output):
            module.save_adapter(new)
            write_json(new / MANIFEST_FILE, manifest)
            for file in new.iterdir():
                apply_umask(file)
        try:
            if output.exists():
                output.rename(old)
            new.rename(output)
        except BaseException:  # Ctrl-C too: the temporary folder is removed with all that is still in it
            if old.exists() and not output.exists():
                old.rename(output)
            raise
