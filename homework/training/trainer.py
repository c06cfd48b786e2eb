"""LoRA training with the transformers Trainer, shared by the VLM and CLIP: resume, evaluation, logs."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerState, TrainingArguments

from ..models.loading import pick_autocast_dtype, pick_device
from ..models.runs import STATE_FILE, checkpoint_step
from ..models.sizes import count_parameters
from ..utils.errors import InputError
from ..utils.io import with_filename
from ..utils.parallel import available_cores
from .callbacks import Display, JsonLinesLog, StopOnSignal, describe_result
from .checkpoints import (
    describe_kept,
    describe_progress,
    is_already_trained,
    remove_checkpoints,
    remove_rest,
    resume_point,
    save_adapter_atomically,
    saving,
)
from .lora import PeftTrainingModule
from .micro_batch import check_micro_batch_size, choose_micro_batch_size, memory_errors_as_input_error
from .sampler import LengthGroupedBatches

logger = logging.getLogger(__name__)

NUM_EVALUATIONS = 4  # per run
NUM_CHECKPOINTS = 2  # that are kept while training
PROJECT = "tux-vlm"  # the name of all runs in an experiment tracker


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


def _num_views(batch: dict) -> int:
    return len(batch["pixel_values"] if "pixel_values" in batch else batch["features"])


class AdapterTrainer(Trainer):
    """A Trainer of a `PeftTrainingModule`: its checkpoints are adapters, its evaluation is a benchmark."""

    def __init__(self, *args, evaluate_model: Callable[[], dict[str, float]], checkpointing: bool, **kwargs):
        super().__init__(*args, **kwargs)
        self.evaluate_model, self.checkpointing = evaluate_model, checkpointing
        self.model_accepts_loss_kwargs = True  # the loss is not divided by the number of micro-batches

    def _get_train_sampler(self, train_dataset: Dataset | None = None):
        lengths = getattr(self.train_dataset, "lengths", None)
        if lengths is None:
            return super()._get_train_sampler(train_dataset)
        # grouped by the whole batch, so that its content depends neither on processes nor on micro-batches
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return LengthGroupedBatches(batch_size, lengths, self.args.seed)

    def get_train_dataloader(self):
        """Load micro-batches of this run's size; transformers 4 takes the one of the run that is resumed."""
        self._train_batch_size = self.args.train_batch_size
        return super().get_train_dataloader()

    def get_batch_samples(self, *args, **kwargs) -> tuple[list[dict], torch.Tensor]:
        """Return a step's micro-batches, and the number of views in those of all processes."""
        batches, _ = super().get_batch_samples(*args, **kwargs)
        count = torch.tensor(sum(map(_num_views, batches)), device=self.args.device)
        return batches, self.accelerator.gather(count).sum()

    def compute_loss(self, model, inputs: dict, return_outputs: bool = False, num_items_in_batch=None):
        """Weigh a micro-batch's loss, a mean over views, by its share of the batch: the last of an epoch is smaller."""
        loss = super().compute_loss(model, inputs)
        # gradients are averaged over processes
        return loss * (_num_views(inputs) * self.args.world_size / num_items_in_batch)

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        """Train on a micro-batch.

        Raises:
            InputError: not enough memory.
        """
        with memory_errors_as_input_error(self.args.train_batch_size, self.checkpointing):
            return super().training_step(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        self.accelerator.unwrap_model(self.model).save_adapter(output_dir or self.args.output_dir)

    def _save_checkpoint(self, *args, **kwargs) -> None:
        with saving(self.args.output_dir):
            super()._save_checkpoint(*args, **kwargs)
        if self.args.should_save:
            remove_checkpoints(Path(self.args.output_dir), NUM_CHECKPOINTS)  # transformers removes the state last

    def _load_from_checkpoint(self, resume_from_checkpoint: str | Path, model: nn.Module | None = None) -> None:
        self.accelerator.unwrap_model(self.model).load_adapter(resume_from_checkpoint)

    def train_or_resume(self, checkpoint: Path | None) -> None:
        """Train to the end; of a checkpoint after the last step, transformers would train one more."""
        if checkpoint and checkpoint_step(checkpoint) >= self.args.max_steps:
            self._load_from_checkpoint(checkpoint)
            self.state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
        else:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def evaluate(self, *_, **__) -> dict[str, float]:
        """Return the benchmark's numbers, under names that TensorBoard groups."""
        self.model.eval()
        results = self.evaluate_model() if self.is_world_process_zero() else {}
        metrics = {f"eval_{name}": value for name, value in results.items()}
        if metrics:
            self.log(dict(metrics))  # which adds the epoch
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def fit(
    module: PeftTrainingModule,
    dataset: Dataset,
    collate: Callable[[list], dict],
    config: TrainingConfig,
    run_dir: Path,
    output: Path,
    evaluate: Callable[[], dict[str, float]],
    micro_batch_size: int | None = None,
    gradient_checkpointing: bool = False,
    report_to: str | None = None,
    next_command: str = "",
) -> None:
    """Train, or resume a stopped run, then put the adapter into `output`.

    Ctrl-C and SIGTERM save the present step first. A run that is finished is not repeated; an adapter of other settings
    in `output` is kept beside it.

    Args:
        config: its batch is shared by all processes that `accelerate launch` starts.
        run_dir: folder for checkpoints, TensorBoard and log.jsonl; checkpoints are removed once the run is finished.
        evaluate: returns the numbers to log, before the first step and `NUM_EVALUATIONS` times per run.
        micro_batch_size: views that a process trains at once; by default as many as memory holds.
        gradient_checkpointing: whether to compute activations again in the backward pass, which saves memory.
        report_to: an experiment tracker that transformers knows, beside TensorBoard.
        next_command: to suggest at the end.

    Raises:
        InputError: a place cannot be written to, settings do not fit, or there is not enough memory.
    """
    if is_already_trained(output, asdict(config)):
        if int(os.environ.get("RANK", 0)) == 0:
            remove_rest(run_dir, asdict(config))
            logger.info(f"{output} is finished with these settings; delete it to train again; next: {next_command}")
        return
    use_all_cores()
    num_processes = int(os.environ.get("WORLD_SIZE", 1))  # set by `accelerate launch` and torchrun
    if config.batch_size % num_processes:
        problem = f"{config.batch_size} views cannot be split evenly among {num_processes} processes"
        raise InputError("--batch-size", problem, "choose a multiple of their number")
    share, device = config.batch_size // num_processes, pick_device()
    check_micro_batch_size(micro_batch_size, share)
    if micro_batch_size is None:
        micro_batch_size = choose_micro_batch_size(module, dataset, collate, share, device)
    if gradient_checkpointing:
        module.enable_gradient_checkpointing()
    dtype = pick_autocast_dtype(device)
    os.environ.setdefault("WANDB_PROJECT", PROJECT)
    arguments = TrainingArguments(
        output_dir=str(run_dir),
        max_steps=config.steps,
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=share // micro_batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(50, config.steps // 10),
        weight_decay=0.0,
        optim="adamw_torch_fused",
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,  # with loss scaling
        logging_steps=max(1, min(10, config.steps // 5)),
        eval_strategy="steps",
        eval_steps=max(1, config.steps // NUM_EVALUATIONS),
        save_strategy="steps",
        save_steps=max(1, min(100, config.steps // 2)),
        report_to=["tensorboard", *([report_to] if report_to else [])],
        run_name=output.name,
        disable_tqdm=True,  # `Display` in its place
        remove_unused_columns=False,
        label_names=[],
        seed=config.seed,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        ddp_find_unused_parameters=False,
    )
    # without a launcher one of several GPUs: split among replicas, a batch would not be the config's
    arguments._n_gpu = min(1, arguments.n_gpu)
    arguments.project = PROJECT  # of trackio; transformers 4.52 has no such argument
    if arguments.process_index == 0:
        logger.info(describe_run(module, config, device, dtype, micro_batch_size, num_processes))
    with arguments.main_process_first(local=False, desc="looking for checkpoints"):
        resume = resume_point(run_dir, asdict(config))
    if arguments.process_index == 0 and (message := describe_kept(output, asdict(config))):
        logger.info(message)
    arguments.eval_on_start = resume is None
    if resume:
        logger.info(f"resuming at step {checkpoint_step(resume)} of {config.steps}, from {resume}")
    stop = StopOnSignal()
    trainer = AdapterTrainer(
        module,
        arguments,
        data_collator=collate,
        train_dataset=dataset,
        eval_dataset=dataset,
        evaluate_model=evaluate,
        checkpointing=gradient_checkpointing,
        callbacks=[Display(), JsonLinesLog(), stop],
    )
    trainer.remove_callback(PrinterCallback)
    start = time.monotonic()
    try:
        with with_filename(run_dir), stop.listening():
            trainer.train_or_resume(resume)
        if stop.is_requested and trainer.state.global_step < config.steps:
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise KeyboardInterrupt(describe_progress(run_dir, config.steps)) from None
    if trainer.is_world_process_zero():
        date = time.strftime("%Y-%m-%d %H:%M")
        manifest = {"date": date, "config": asdict(config), "curve": trainer.state.log_history}
        save_adapter_atomically(module, output, manifest)
        remove_checkpoints(run_dir)
        logger.info(describe_result(manifest, time.monotonic() - start))
        logger.info(f"saved {output}; next: {next_command}")


def describe_run(
    module: PeftTrainingModule,
    config: TrainingConfig,
    device: torch.device,
    dtype: torch.dtype,
    micro_batch_size: int,
    num_processes: int,
) -> str:
    """Return a line about device, precision, base, weights, batch and steps."""
    num_trained = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
    count = config.batch_size // micro_batch_size // num_processes
    where = f"{num_processes} processes on {device.type}" if num_processes > 1 else device.type
    precision = str(dtype).removeprefix("torch.") + (" with loss scaling" if dtype == torch.float16 else "")
    batch = f"{config.batch_size} views" + (f" ({count} micro-batches of {micro_batch_size})" if count > 1 else "")
    model = f"base {config.base}, {count_parameters(module.peft)}; {num_trained:,} are trained"
    return f"training on {where} in {precision}: {model}, in {config.steps} steps of {batch}"
