"""LoRA training with the transformers Trainer, shared by the VLM and CLIP: resume, evaluation, TensorBoard."""

import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
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

STATE = "trainer_state.json"  # what the Trainer writes last into a checkpoint


@dataclass(frozen=True)
class TrainingConfig:
    """All that decides a run; a stopped run is only gone on with under the same one."""

    base: str
    steps: int
    batch_size: int
    learning_rate: float
    rank: int
    seed: int
    samples: int  # of the training set
    data: str  # a digest of it, so that another set is another run


def use_all_cores() -> None:
    """As many threads as cores, unless a launcher or the user has said otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cores())


def validation_rows(make: Callable[[dict, int, int], list[dict]], count: int, data_dir: Path) -> list[dict]:
    """Rows about a part of valid, to ask while training; none, and a word of it, where valid can't give them.

    Args:
        make: `balanced_pairs` or `multiple_choice` of `evalsets`.
        count: how many.
    """
    from ..labels.eval_sets import split_scenes

    try:
        return add_image_paths(make(split_scenes(data_dir, "valid"), count, 1), data_dir)
    except InputError as error:
        logger.info(f"training goes on without questions on valid: {error}")
        return []


class LengthGroupedBatches(LengthGroupedSampler):
    """transformers' sampler that puts views with about as many questions together, so little is padded.

    Its order follows from seed and epoch alone, so a resumed run goes on where it was.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each pass."""
        self.epoch = epoch

    def __iter__(self):
        self.generator = torch.Generator().manual_seed(self.seed + 7919 * self.epoch)
        return super().__iter__()


@contextlib.contextmanager
def _saving(folder: str | Path) -> Iterator[None]:
    """A full disk in one line about `folder`: safetensors and torch have errors of their own for it.

    Raises:
        InputError: they could not write.
    """
    try:
        with with_filename(folder):
            yield
    except (SafetensorError, RuntimeError) as error:
        remedy = "check its permissions and the free space, then run the same command again to go on"
        raise InputError(folder, f"not saved ({first_line(error)})", remedy) from None


class AdapterTrainer(Trainer):
    """A Trainer whose checkpoints are adapters and whose evaluation is a benchmark.

    The model is an `PeftTrainingModule`.
    """

    def __init__(self, *args, score: Callable[[], dict[str, float]], **kwargs):
        super().__init__(*args, **kwargs)
        self.score = score

    def _get_train_sampler(self, train_dataset: Dataset | None = None):
        lengths = getattr(self.train_dataset, "lengths", None)
        if lengths is None:
            return super()._get_train_sampler(train_dataset)
        # grouped by the batch of all processes together, so that their number does not change what is in it
        return LengthGroupedBatches(self.args.train_batch_size * self.args.world_size, lengths, self.args.seed)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        self.accelerator.unwrap_model(self.model).save_adapter(output_dir or self.args.output_dir)

    def _save_checkpoint(self, *args, **kwargs) -> None:
        with _saving(self.args.output_dir):
            super()._save_checkpoint(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.accelerator.unwrap_model(self.model).load_adapter(resume_from_checkpoint)

    def evaluate(self, *_, **__) -> dict[str, float]:
        """The benchmark's numbers, under names that TensorBoard groups."""
        self.model.eval()
        metrics = (
            {f"eval_{name}": value for name, value in self.score().items()} if self.is_world_process_zero() else {}
        )
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint. The Trainer writes its state last, so one without it was cut short."""
    whole = []
    for state in folder.glob(f"checkpoint-*/{STATE}"):
        with contextlib.suppress(ValueError, OSError, KeyError, TypeError):
            whole.append((json.loads(state.read_text())["global_step"], state.parent))
    return max(whole, default=(0, None))[1]


def _resume_point(work: Path, recipe: TrainingConfig) -> Path | None:
    """The checkpoint to go on from; starts a new run's folder where there is none.

    Raises:
        InputError: the folder holds the checkpoints of a run with another recipe.
    """
    file, checkpoint = work / "recipe.json", last_checkpoint(work)
    if checkpoint and file.exists() and read_json(file) == asdict(recipe):
        return checkpoint
    if checkpoint:
        raise InputError(
            work, "holds an unfinished run with other settings", "delete it, or give --work another folder"
        )
    for part in work.glob("checkpoint-*"):
        shutil.rmtree(part)
    write_json(file, asdict(recipe))
    return None


def fit(
    module: PeftTrainingModule,
    dataset: Dataset,
    collate: Callable[[list], dict],
    recipe: TrainingConfig,
    work: Path,
    output: Path,
    score: Callable[[], dict[str, float]],
    evaluations: int = 4,
) -> None:
    """Train, or go on with a stopped run, then put the adapter into `output`.

    Args:
        recipe: its batch is shared by all processes that `accelerate launch` starts.
        work: folder for checkpoints and TensorBoard; its checkpoints go once the run is done.
        score: gives the numbers to log, some `evaluations` times a run.
    """
    check_output_dir(output)
    use_all_cores()
    processes = int(os.environ.get("WORLD_SIZE", 1))  # set by `accelerate launch` and torchrun
    if recipe.batch_size % processes:
        problem = f"{recipe.batch_size} views can't be shared evenly by {processes} processes"
        raise InputError("--batch-size", problem, "take a multiple of their number")
    every = max(1, recipe.steps // evaluations)
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size // processes,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(50, recipe.steps // 10),
        weight_decay=0.0,
        optim="adamw_torch_fused",
        bf16=pick_dtype(pick_device()) == torch.bfloat16,
        logging_steps=max(1, min(20, recipe.steps // 5)),
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=max(1, min(100, recipe.steps // 2)),
        save_total_limit=2,
        report_to=["tensorboard"],
        disable_tqdm=is_quiet() or not sys.stderr.isatty(),  # lines of numbers in its place
        remove_unused_columns=False,
        label_names=[],
        seed=recipe.seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
    )
    # of several GPUs without a launcher one: shared among replicas, a batch would be another than the recipe's
    arguments._n_gpu = min(1, arguments.n_gpu)
    with arguments.main_process_first(local=False, desc="looking for checkpoints"):
        resume = _resume_point(work, recipe)
    if resume:
        logger.info(f"going on from {resume}")
    trainer = AdapterTrainer(
        module, arguments, data_collator=collate, train_dataset=dataset, eval_dataset=dataset, score=score
    )
    if is_quiet():
        trainer.remove_callback(PrinterCallback)
    with with_filename(work):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if trainer.is_world_process_zero():
        save_adapter_atomically(module, output, {"recipe": asdict(recipe), "curve": trainer.state.log_history})
        for checkpoint in work.glob("checkpoint-*"):
            (checkpoint / STATE).unlink(missing_ok=True)  # first: half a checkpoint must not pass for a whole one
            shutil.rmtree(checkpoint)
        logger.info(f"saved {output}")


def check_output_dir(output: Path) -> None:
    """Make sure before training that an adapter can replace what is at `output`.

    Raises:
        InputError: something else is there, which would be lost, or the folder above it can't be written to.
    """
    known = (output / "training.json", output / "adapter_config.json")
    if output.is_file() or (output.is_dir() and any(output.iterdir()) and not any(file.exists() for file in known)):
        raise InputError(output, "is there, and holds no adapter that may be replaced", "name another --output")
    check_writable(output, folder=True)


def save_adapter_atomically(module: PeftTrainingModule, output: Path, told: dict) -> None:
    """Write the adapter beside `output`, then swap the folders: a full disk or Ctrl-C leaves the old one whole.

    Args:
        told: for `training.json` beside the weights.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        with _saving(output):
            module.save_adapter(new)
            write_json(new / "training.json", told)
            for file in new.iterdir():
                apply_umask(file)
        try:
            if output.exists():
                output.rename(old)
            new.rename(output)
        except BaseException:  # Ctrl-C too: what is still in the temporary folder goes with it
            if old.exists() and not output.exists():
                old.rename(output)
            raise
