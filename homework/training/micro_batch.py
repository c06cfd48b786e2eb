"""Choose how many views to train at once: a batch is divided into micro-batches that fit into memory."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch
from torch import nn
from torch.utils.data import Dataset

from ..models.loading import pick_autocast_dtype
from ..utils.errors import InputError, UsageError

# A step's peak was 1.4 times what its forward pass saves with SmolVLM-256M, 2.3 times with TuxNano (float32, CPU).
MAX_MEMORY_SHARE = 0.4
MAX_CPU_BYTES = 4_000_000_000  # so that SmolVLM trains within 12 GB, weights and evaluation included
CGROUPS = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def memory_errors_as_input_error(micro_batch_size: int, gradient_checkpointing: bool) -> Iterator[None]:
    """Turn an allocation that fails, on any device, into an `InputError` with the remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not any(
            part in str(error) for part in ("out of memory", "DefaultCPUAllocator")
        ):
            raise
        remedies = [f"--micro-batch-size {micro_batch_size // 2}"] if micro_batch_size > 1 else []
        remedies += [] if gradient_checkpointing else ["--gradient-checkpointing"]
        remedy = f"add {' or '.join(remedies)}" if remedies else "choose a smaller --base, or a machine with more"
        problem = f"not enough memory for {micro_batch_size} views at once"
        raise InputError("--micro-batch-size", problem, f"{remedy}, and run the command again") from None


def check_micro_batch_size(micro_batch_size: int | None, share: int) -> None:
    """Check that a micro-batch divides a process's share of the batch; None stands for the default."""
    if micro_batch_size and share % micro_batch_size:
        problem = f"{share} views per process cannot be divided into micro-batches of {micro_batch_size}"
        raise UsageError("--micro-batch-size", problem, "choose a divisor")


def choose_micro_batch_size(
    module: nn.Module, dataset: Dataset, collate: Callable[[list], dict], share: int, device: torch.device
) -> int:
    """Return the largest divisor of `share` whose forward pass saves no more than memory allows, at least 1.

    What CLIP saves for its captions does not depend on the number of views, which may always save half as much: each
    micro-batch encodes the captions again.

    Args:
        dataset: the view with the most questions is measured, if its `lengths` tell it, else the first.
        share: views per step of a process.
    """
    lengths = getattr(dataset, "lengths", [0])
    view = dataset[max(range(len(lengths)), key=lengths.__getitem__)]
    with torch.random.fork_rng(), memory_errors_as_input_error(1, False):
        one, two = (saved_bytes(module, collate([view] * count), device) for count in (1, 2))
    divisors = (size for size in range(share, 1, -1) if share % size == 0)
    per_view, fixed = two - one, max(2 * one - two, 0)
    budget = max(memory_budget(device) - fixed, fixed // 2)
    return next((size for size in divisors if size * per_view <= budget), 1)


def saved_bytes(module: nn.Module, batch: dict, device: torch.device) -> int:
    """Return how many bytes a forward pass saves for the backward pass, beside the weights."""
    sizes = {}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would hold its own graph, and never be freed

    was_training, dtype = module.training, pick_autocast_dtype(device)
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor), autocast:
        module.train()(**batch)
    module.train(was_training)
    weights = {weight.untyped_storage().data_ptr() for weight in module.parameters()}
    return sum(size for place, size in sizes.items() if place not in weights)


def memory_budget(device: torch.device) -> int:
    """Return how many bytes the forward pass of one process may save."""
    if device.type == "cuda":
        return int(MAX_MEMORY_SHARE * torch.cuda.mem_get_info(device)[0])
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # they share the machine's memory
    free = min(psutil.virtual_memory().available, _container_limit() - psutil.Process().memory_info().rss)
    return min(int(MAX_MEMORY_SHARE * free), MAX_CPU_BYTES) // processes


def _container_limit() -> float:
    """Return the limit in bytes that a container or a batch system sets this process (cgroup v2), or infinity."""
    limits = []
    with contextlib.suppress(OSError):
        own = CGROUPS / Path("/proc/self/cgroup").read_text().strip().rpartition("::/")[2]
        for folder in (own, *own.parents):
            with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
                limits.append(int((folder / "memory.max").read_text()))
    return min(limits, default=float("inf"))
