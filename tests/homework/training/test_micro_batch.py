"""Test training.micro_batch: batches in parts train as whole ones, the default fits, errors name the remedy."""

import json
import logging
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from homework import clip, finetune
from homework.models.loading import backbone, load_base, pick_autocast_dtype, pick_device, pick_dtype
from homework.models.prompts import PromptTokens
from homework.training import micro_batch, trainer
from homework.training.lora import add_lora
from homework.training.packing import PackedTrainingModule, PackedVQADataset, collate_views
from homework.utils.errors import InputError, UsageError
from tests.homework.training.test_packing import OTHER_PAIRS, PAIRS, grads, packed_batch


def train(module, base, data, folder, **settings) -> dict[str, torch.Tensor]:
    """Train 2 steps of 6 of the 9 views, of which the second has the other 3; return all gradients of both."""
    gradients = {}

    def record(optimizer, *_) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        step = len(gradients) // len(weights)
        gradients.update({(step, number): weight.grad.clone() for number, weight in enumerate(weights)})

    settings = {"steps": 2, "batch_size": 6, "rank": 4, "learning_rate": 1e-6} | settings
    hook = register_optimizer_step_pre_hook(record)
    try:
        module.train(str(base), data=str(data), output=str(folder / "out"), run_dir=str(folder / "run"), **settings)
    finally:
        hook.remove()
    return gradients


@pytest.mark.parametrize("module", [finetune, clip])
def test_micro_batches_train_as_a_whole_batch(smol_folder, no_progress, tmp_path, module):
    """Every gradient of every step is that of the batch in one piece, the incomplete one of an epoch's end too."""
    whole = train(module, smol_folder, no_progress, tmp_path / "whole", micro_batch_size=6)
    for size in (3, 2):
        parts = train(module, smol_folder, no_progress, tmp_path / str(size), micro_batch_size=size)
        assert parts.keys() == whole.keys() and len(whole) > 40
        for name, expected in whole.items():
            assert (parts[name] - expected).norm() <= 1e-3 * expected.norm() + 1e-7, name
    curves = [json.loads((tmp_path / name / "out/training.json").read_text())["curve"] for name in ("whole", "2")]
    losses = [[row["loss"] for row in curve if "loss" in row] for curve in curves]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_gradient_checkpointing_changes_no_gradient(smol_folder, nano_folder, no_progress, tmp_path):
    whole = train(finetune, smol_folder, no_progress, tmp_path / "whole", steps=1)
    again = train(finetune, smol_folder, no_progress, tmp_path / "again", steps=1, gradient_checkpointing=True)
    assert all(torch.allclose(again[name], gradient, atol=1e-6) for name, gradient in whole.items()) and whole
    with pytest.raises(UsageError, match="--gradient-checkpointing"):
        train(finetune, nano_folder, no_progress, tmp_path / "nano", gradient_checkpointing=True)


@pytest.fixture
def parts(smol_folder, no_progress) -> tuple:
    """Return (module, dataset, collate) of a tiny SmolVLM's training."""
    model, processor = load_base(str(smol_folder))
    dataset = PackedVQADataset.of_split("train", no_progress)
    module = PackedTrainingModule(add_lora(model, 4, str(smol_folder)))
    return module, dataset, partial(collate_views, processor=processor, tokens=PromptTokens(processor))


def test_gradient_checkpointing_computes_again_what_it_does_not_save(parts):
    module, dataset, collate = parts
    calls = []
    backbone(module.base).text_model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(0))
    module.enable_gradient_checkpointing()
    loss = module.train()(**collate([dataset[0]]))["loss"]
    assert len(calls) == 1
    loss.backward()
    assert len(calls) == 2


def test_the_default_is_what_memory_holds(parts, monkeypatch):
    """The largest divisor of the batch for the view with most questions; the random state stays as it was."""
    module, dataset, collate = parts
    longest = dataset[max(range(len(dataset)), key=dataset.lengths.__getitem__)]
    per_view = micro_batch.saved_bytes(module, collate([longest]), torch.device("cpu"))
    state = torch.get_rng_state()
    for views, expected in ((100, 12), (12.5, 12), (11.5, 6), (5, 4), (1.5, 1), (0.1, 1)):
        monkeypatch.setattr(micro_batch, "memory_budget", lambda _, views=views: views * per_view)
        assert micro_batch.choose_micro_batch_size(*parts, 12, torch.device("cpu")) == expected, views
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_budgets(monkeypatch, tmp_path):
    """On a CPU it is bounded by what is free, by a container's limit and by 4 GB; on a GPU by what is free there."""
    gigabyte, free = 10**9, [100]
    monkeypatch.setattr(micro_batch, "CGROUPS", tmp_path)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free[0] * gigabyte))
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert micro_batch.memory_budget(cpu) == 4 * gigabyte
    free[0] = 5
    assert micro_batch.memory_budget(cpu) == 2 * gigabyte
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert micro_batch.memory_budget(cpu) == gigabyte
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    (tmp_path / "memory.max").write_text(str(4 * gigabyte))
    assert micro_batch.memory_budget(cpu) < 1.6 * gigabyte
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (15 * gigabyte, 16 * gigabyte))
    assert micro_batch.memory_budget(gpu) == 6 * gigabyte


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"micro_batch_size": 6}, "add --micro-batch-size 3 or --gradient-checkpointing"),
        ({"micro_batch_size": 1}, "add --gradient-checkpointing"),
        ({"micro_batch_size": 1, "gradient_checkpointing": True}, "a smaller --base"),
    ],
)
def test_a_memory_error_is_one_line_with_the_remedy(
    smol_folder, no_progress, tmp_path, monkeypatch, settings, remedy, kind
):
    def fail(*_, **__):
        if kind == "cpu":
            torch.empty(1 << 60, dtype=torch.uint8)  # as the allocator itself words it
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has a total capacity")

    monkeypatch.setattr(PackedTrainingModule, "forward", fail)
    with pytest.raises(InputError, match=f"not enough memory .*{remedy}") as info:
        train(finetune, smol_folder, no_progress, tmp_path, **settings)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("size", [4, 5, 7])
def test_a_micro_batch_divides_the_batch(nano_folder, no_progress, tmp_path, size):
    with pytest.raises(UsageError, match="--micro-batch-size: 6 views per process"):
        train(finetune, nano_folder, no_progress, tmp_path, micro_batch_size=size)


@pytest.mark.parametrize(
    ("name", "bfloat16", "capability", "weights", "training"),
    [
        ("H100", True, (9, 0), torch.bfloat16, torch.bfloat16),
        ("A100", True, (8, 0), torch.bfloat16, torch.bfloat16),
        ("T4", False, (7, 5), torch.float32, torch.float16),
        ("V100", False, (7, 0), torch.float32, torch.float16),
        ("GTX 1080", False, (6, 1), torch.float32, torch.float32),
    ],
)
def test_precision_by_what_a_gpu_computes_fast(monkeypatch, name, bfloat16, capability, weights, training):
    """Pretended: each process of a launcher takes its own GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or bfloat16
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    for rank in ("0", "3"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert pick_device() == torch.device("cuda", int(rank))
    assert (pick_dtype(pick_device()), pick_autocast_dtype(pick_device())) == (weights, training)


def test_precision_elsewhere(monkeypatch):
    """Pretended: a Mac trains on its GPU in float32, as a CPU does."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for is_mac, expected in ((True, "mps"), (False, "cpu")):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda is_mac=is_mac: is_mac)
        assert pick_device().type == expected and pick_autocast_dtype(pick_device()) == torch.float32


def test_gradients_in_float16_with_loss_scaling(adapted, views):
    """As on a T4, but on the CPU: scaled gradients are finite and those of float32, to the precision of float16."""
    module, batch = PackedTrainingModule(adapted.model.eval()), packed_batch(adapted, views, [PAIRS, OTHER_PAIRS])
    module(**batch)["loss"].backward()
    expected = grads(module)
    scaler = torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD([weight for weight in module.parameters() if weight.requires_grad])
    for _ in range(12):  # a step whose gradients overflow is skipped, and the next one scaled by half
        with torch.autocast("cpu", torch.float16):
            loss = module(**batch)["loss"]
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.update()
        found = grads(module)
        if all(gradient.isfinite().all() for gradient in found.values()):
            break
    assert found.keys() == expected.keys()
    flat = [torch.cat([gradients[name].flatten() for name in expected]) for gradients in (expected, found)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.99


@pytest.mark.parametrize("module", [finetune, clip])
def test_the_first_line_says_what_is_trained(nano_folder, no_progress, tmp_path, caplog, module):
    with caplog.at_level(logging.INFO, "homework.training"):
        train(module, nano_folder, no_progress, tmp_path, micro_batch_size=2)
    first = next(text for text in caplog.messages if text.startswith("training on"))
    for part in (
        "cpu in float32",
        f"base {nano_folder}",
        "without token embedding) and",
        "are trained",
        "2 steps of 6 views (3 micro-batches of 2)",
    ):
        assert part in first
    assert any("s per step: about 0:00:00 for the other 0 steps" in text for text in caplog.messages)


def test_a_run_resumes_with_smaller_micro_batches(nano_folder, no_progress, tmp_path, monkeypatch):
    """The memory error's advice works: the run's settings do not hold the micro-batch."""
    sizes, real = [], trainer.AdapterTrainer.training_step

    def step(self, model, inputs, *arguments) -> torch.Tensor:
        sizes.append(len(inputs["pixel_values"]))
        if len(sizes) == 4:  # after step 3 is saved
            raise KeyboardInterrupt
        return real(self, model, inputs, *arguments)

    monkeypatch.setattr(trainer.AdapterTrainer, "training_step", step)
    with pytest.raises(KeyboardInterrupt):
        train(finetune, nano_folder, no_progress, tmp_path, steps=6, batch_size=4, micro_batch_size=4)
    train(finetune, nano_folder, no_progress, tmp_path, steps=6, batch_size=4, micro_batch_size=2)
    assert sizes == [4, 4, 1, 4, 2, 2, 2, 2, 1]
