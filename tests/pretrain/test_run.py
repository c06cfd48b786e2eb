"""The recipe as one command: what it needs, resuming, the base that it makes and the manifest."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from homework.labels.questions import QUESTION_TYPES
from homework.models.loading import load_base
from homework.utils.errors import InputError
from pretrain import cli, trainer
from pretrain.config import CPU_CONFIG, GPU_CONFIG, load_config
from pretrain.run import MANIFEST_FILE, Run
from tests.conftest import assert_one_line_error
from tests.pretrain.tiny_run import tiny_config, tiny_config_file

COMMANDS = (cli.run, cli.pack, cli.eval, cli.ablate)
CURVES = ("fovea", "vision", "read", "text")


@pytest.fixture
def command(call, tiny_data, tmp_path):
    """`command(*arguments)` runs the tiny recipe with the course's frames alone."""
    file = tiny_config_file(tmp_path)

    def command(*arguments, name: str = "run") -> tuple[int, str, str]:
        folders = "--data", tiny_data, "--run-dir", tmp_path / "run"
        return call(COMMANDS, name, "--config", file, "--frames", "train", *folders, *arguments)

    return command


def test_one_command_makes_a_base(command, tmp_path, call, tiny_data):
    """Every stage runs, the base loads, its manifest says how it was made; run again, only the export is repeated."""
    status, out, err = command()
    assert status == 0, err
    assert "vision-3" in out and "h left in this stage" in out
    base = tmp_path / "run/base"
    model, _ = load_base(str(base))
    assert model.config.text.hidden_size == 48
    manifest = json.loads((base / MANIFEST_FILE).read_text())
    assert manifest["config"]["stages"]["vision"]["steps"] == 6 and list(manifest["curves"]) == list(CURVES)
    assert manifest["curves"]["vision"][-1]["step"] == 6 and "mean" in manifest["curves"]["vision"][-1]
    assert manifest["curves"]["text"][-1].keys() >= {"course's words", "other words"}
    assert all(manifest["cost"][name]["cpu_seconds"] > 0 for name in CURVES)
    assert {"commit", "machine", "held-out moments"} <= manifest.keys() and manifest["data"]["sources"] == ["train"]
    before = (base / "model.safetensors").read_bytes()
    status, out, err = command()
    assert status == 0 and "all stages are finished" in out, err
    assert (base / "model.safetensors").read_bytes() == before
    status, out, err = call(COMMANDS, "eval", base, "--data", tiny_data)
    assert status == 0 and re.findall(r"^(\w+) +[\d.]+ +[\d.]+-", out, re.MULTILINE) == [*QUESTION_TYPES, "mean"]
    assert "found, 20 or more pixels" in out and "total of 3 karts" in out, err


def test_a_run_continues_in_another_folder_and_without_its_frames(command, tmp_path, tiny_data, call):
    """Stopped in its last stage, it is moved with the packs alone; then it ends as a run that was not."""
    file = tmp_path / "tiny.toml"
    parts = file.read_text()
    file.write_text(parts.replace("parts = 2", "parts = 1"))
    assert command("--run-dir", tmp_path / "whole")[0] == 0
    file.write_text(parts)
    for stage in ("fovea", "vision-1", "vision-2", "vision-3", "read", "text-1"):
        assert command("--stage", stage)[0] == 0
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    shutil.rmtree(tiny_data / "train")
    status, _, err = call(COMMANDS, "run", "--data", tiny_data, "--run-dir", tmp_path / "elsewhere")
    assert status == 0, err
    whole, moved = (trainer.read_checkpoint(tmp_path / name / "text.pt")["average"] for name in ("whole", "elsewhere"))
    assert all(torch.equal(weight, moved[name]) for name, weight in whole.items())
    files = (file.read_bytes() for file in (tmp_path / "elsewhere").rglob("*") if file.is_file())
    assert not any(str(tmp_path).encode() in content for content in files)  # no absolute path


def test_stages_have_an_order(command):
    """A stage that others have to be finished for, or that the config does not have, is named with the remedy."""
    assert command("--stage", "read")[0] == 0  # which needs no other
    assert_one_line_error(command("--stage", "text-1"), "run --stage fovea")
    assert_one_line_error(command("--stage", "vision-2"), "run --stage fovea")
    assert_one_line_error(command("--stage", "vison-2"), "did you mean vision-2?")


def test_what_cannot_be_fetched_is_named_first(call, tiny_data, tmp_path, monkeypatch):
    """Without the legacy engine, the error gives its command, and the flag that does without; nothing is trained."""
    monkeypatch.setattr("supertux.render.engines.pystk1.assets.INSTALL_DIR", tmp_path / "none")
    monkeypatch.setattr("supertux.render.engines.pystk1.assets.INTERPRETER", tmp_path / "none/python")
    arguments = "--config", tiny_config_file(tmp_path), "--data", tiny_data, "--run-dir", tmp_path / "run"
    result = call(COMMANDS, "run", *arguments)
    assert_one_line_error(result, "install-legacy-engine")
    assert "--frames train" in result[2] and not list((tmp_path / "run").glob("*.pt"))
    shutil.rmtree(tiny_data / "train")
    assert_one_line_error(call(COMMANDS, "run", *arguments, "--frames", "train"), "supertux download")


def test_frames_of_the_sample_are_unpacked(sample_data, tmp_path):
    """The config's source `sample` needs no engine; its frames are those that are trained on, not those of valid."""
    config = load_config(CPU_CONFIG.with_name("boxes.toml"), "sample")
    Run(config, tmp_path / "data", tmp_path / "run").make_frames()
    names = [
        sorted(path.name for path in folder.iterdir()) for folder in (tmp_path / "data/sample", sample_data / "train")
    ]
    assert names[0] == [name for name in names[1] if name.endswith((".jpg", "_info.json"))]
    assert len(list((tmp_path / "data/packs").glob("sample-*.safetensors"))) == 1


def test_a_folder_of_other_settings_is_left_alone(command, tmp_path):
    """The error names the setting; with the old one the run continues."""
    assert command("--stage", "fovea")[0] == 0
    file = tmp_path / "tiny.toml"
    text = file.read_text()
    file.write_text(text.replace("hidden_size = 64", "hidden_size = 32"))
    assert_one_line_error(command(), "vision.hidden_size was 64, is 32")
    file.write_text(text.replace("text = { steps = 2", "text = { steps = 4"))
    assert command("--stage", "vision-1")[0] == 0  # a later stage's settings may change


def test_a_run_without_a_part_is_not_exported(call, tiny_data, tmp_path):
    file = tiny_config_file(tmp_path)
    file.write_text(file.read_text() + "\n[parts]\nfoveal_branch = false\n")
    folders = "--data", tiny_data, "--run-dir", tmp_path / "run", "--frames", "train"
    assert call(COMMANDS, "run", "--config", file, *folders, "--stage", "vision-3")[0] == 1
    for part in (1, 2, 3):
        assert call(COMMANDS, "run", "--config", file, *folders, "--stage", f"vision-{part}")[0] == 0
    assert not (tmp_path / "run/fovea.pt").exists() and not (tmp_path / "run/base").exists()


def test_evaluation_splits_are_not_trained_on(call, tiny_data, tmp_path):
    file = tiny_config_file(tmp_path)
    file.write_text(
        file.read_text().replace("[text]", "[sources.valid]\nweight = 1.0\nframes = 0\nseed = 0\npreset = ''\n[text]")
    )
    folders = "--data", tiny_data, "--run-dir", tmp_path / "run", "--frames", "train,valid"
    assert_one_line_error(call(COMMANDS, "run", "--config", file, *folders), "refusing to train on an evaluation split")


def test_a_checkpoint_folder_of_the_shipped_sizes_fits(tmp_path):
    """Two stages in the middle, which have the optimizer's state, and the base take less than 200 MB."""
    run, total = Run(load_config(CPU_CONFIG, "train"), tmp_path, tmp_path), 0
    for stage, module in (("vision", run.build_module("vision")), ("read", run.build_module("read"))):
        training = trainer.Training(module, run.config.stages[stage], {})
        for weight in training.parameters:
            weight.grad = torch.zeros_like(weight)
        training.optimizer.step()
        training.save(run.checkpoint(stage))
        total += run.checkpoint(stage).stat().st_size
    assert total + 35e6 + 2 * 20e6 < 200e6  # with the base, and the averages of the other stages


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("sedd = 1", r"unknown key sedd; did you mean seed\?"),
        ("workers = 'two'", r"Expected `int`, got `str` - at `\$.workers`"),
        ("shape = 'grid'", "shape is grid, expected one of cells"),
        ("[stages.visoin]\nsteps = 1", "unknown stage visoin; did you mean vision?"),
        ("[augment]\nflip = 0.5", "unknown key augment.flip; did you mean flip_prob?"),
        ("seed =", "not TOML"),
    ],
)
def test_config_errors_name_the_key(tmp_path, changes, message):
    (tmp_path / "broken.toml").write_text(f'extends = "cpu.toml"\n{changes}\n')
    with pytest.raises(InputError, match=message):
        load_config(tmp_path / "broken.toml")


def test_shipped_configs_differ_only_where_they_say():
    """The GPU's config has the CPU's parts and data, larger batches and more steps."""
    cpu, gpu = load_config(CPU_CONFIG), load_config(GPU_CONFIG)
    assert cpu.vision == gpu.vision and cpu.parts == gpu.parts and cpu.sources.keys() == gpu.sources.keys()
    assert all(gpu.stages[name].steps > cpu.stages[name].steps for name in CURVES)


def test_all_stages_train_in_bfloat16(tiny_data, tmp_path, monkeypatch):
    """As on a GPU: every loss can be computed there, and what is saved stays in float32."""
    monkeypatch.setattr(trainer, "pick_dtype", lambda device: torch.bfloat16)
    run = Run(tiny_config(tmp_path), tiny_data, tmp_path / "run")
    run.run()
    for stage in CURVES:
        weights = trainer.read_checkpoint(run.checkpoint(stage))["average"]
        assert all(weight.dtype == torch.float32 and weight.isfinite().all() for weight in weights.values())


@pytest.mark.slow
def test_a_killed_run_resumes(tiny_data, tmp_path):
    """Killed (SIGKILL) in the middle of a stage, the command continues from the checkpoint."""
    config = tiny_config_file(tmp_path)
    config.write_text(config.read_text().replace("vision = { steps = 6", "vision = { steps = 100"))
    code = "import sys; from pretrain import trainer, cli; trainer.SAVE_EVERY = 10; sys.argv[0] = 'x'; cli.main()"
    arguments = ["run", "--config", config, "--frames", "train", "--data", tiny_data, "--run-dir", tmp_path / "run"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("vision: step 10 "):
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    state = torch.load(tmp_path / "run/vision.pt", weights_only=True)
    assert 10 <= state["step"] < 100 and "optimizer" in state
    Run(load_config(config, "train"), tiny_data, tmp_path / "run").run()
    assert load_base(str(tmp_path / "run/base"))
