"""Test models.runs: what a user is told about a run that is not finished, or mistyped; the hub is not asked."""

import pytest

from homework import clip, finetune
from homework.models.loading import checkpoint_folder, resolve_base
from homework.models.lora_weights import ADDITIONAL_WEIGHTS
from homework.models.runs import STATE_FILE
from homework.utils.errors import InputError
from homework.utils.io import write_json
from tests.conftest import assert_one_line_error
from tests.tiny_models import save_adapter

COMMANDS = {finetune: "finetune", clip: "clip"}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The folder `runs` of the working directory; the hub cannot be asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    return tmp_path / "runs"


def save_step(run_dir, step: int, is_clip: bool = False) -> None:
    """Write what counts as a complete checkpoint."""
    write_json(run_dir / f"checkpoint-{step}" / STATE_FILE, {"global_step": step})
    if is_clip:
        (run_dir / f"checkpoint-{step}" / ADDITIONAL_WEIGHTS).touch()


@pytest.mark.parametrize(("module", "part"), [(finetune, "vlm"), (clip, "clip")])
def test_an_unfinished_run_is_named_with_its_step_and_what_resumes_it(runs, tiny_data, call, module, part):
    """So are the folder of its checkpoints, and its name in runs."""
    save_step(runs / f"{part}-run", 50, part == "clip")
    save_step(runs / f"{part}-run", 94, part == "clip")
    save_step(runs / "mine-run", 7, part == "clip")
    for name, folder, step, flag in (
        (f"runs/{part}", f"runs/{part}", 94, ""),
        (f"runs/{part}-run", f"runs/{part}-run", 94, ""),
        ("mine", "runs/mine", 7, " --output runs/mine"),
    ):
        result = call((module.train, module.test), "test", name, "--data", tiny_data)
        place = f"runs/{part}-run" if step == 94 else "runs/mine-run"
        command = f"`python -m homework.{COMMANDS[module]} train{flag}`"
        assert_one_line_error(result, f"error: {folder}: unfinished: {place} is at step {step}; {command} resumes it")
        assert result[1] == ""  # nothing about the hub


def test_a_run_is_resumed_by_the_command_of_its_own_part(runs, tiny_data, call):
    """The checkpoints say whether it is a CLIP, whichever command is given."""
    save_step(runs / "smolclip-run", 5, is_clip=True)
    result = call((finetune.train, finetune.test), "test", "runs/smolclip", "--data", tiny_data)
    assert_one_line_error(result, "`python -m homework.clip train --output runs/smolclip` resumes it")


def test_a_run_without_a_saved_step_starts_again(runs, tiny_data, call):
    (runs / "vlm-run").mkdir(parents=True)
    result = call((finetune.train, finetune.test), "test", "runs/vlm", "--data", tiny_data)
    assert_one_line_error(result, "runs/vlm: not trained yet: runs/vlm-run has no saved step; `python -m homework.fine")


def test_checkpoints_and_logs_of_a_finished_run_are_not_its_adapter(runs, nano_folder, tiny_data, call):
    save_adapter(str(nano_folder), runs / "vlm")
    (runs / "vlm-run").mkdir()
    result = call((finetune.train, finetune.test), "test", "runs/vlm-run", "--data", tiny_data)
    assert_one_line_error(result, "runs/vlm-run: holds a run's checkpoints and logs, not its adapter; name runs/vlm")


def test_a_mistyped_run_is_no_model_of_the_hub(runs, nano_folder, tiny_data, call):
    """The closest adapter is suggested, never a folder of checkpoints; nothing is downloaded."""
    save_adapter(str(nano_folder), runs / "smolvlm")
    save_step(runs / "vlm-run", 3)
    for module in (finetune, clip):
        for name in ("runs/smolvl", "./runs/smolvl"):
            result = call((module.train, module.test), "test", name, "--data", tiny_data)
            assert_one_line_error(result, "did you mean smolvlm?")
            assert result[1] == ""
        result = call((module.train, module.test), "test", "runs/vlm-rum", "--data", tiny_data)
        assert_one_line_error(result, "runs/vlm-rum: no such ")
        assert "vlm-run" not in result[2]
    with pytest.raises(InputError, match="runs/gone: no such base"):
        resolve_base("runs/gone")
    assert checkpoint_folder("smolvlm") == checkpoint_folder("runs/smolvlm")
