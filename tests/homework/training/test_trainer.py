"""Test training.trainer: adapters are swapped atomically, a run resumes only with its own data, flags are checked."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from homework import clip, finetune, generate_captions, generate_qa
from homework.models.loading import checkpoint_folder, default_checkpoint
from homework.models.runs import last_checkpoint
from homework.training import trainer
from homework.training.checkpoints import check_output_dirs
from homework.utils.errors import InputError, UsageError
from tests.homework.test_finetune import stop_at_evaluation, train


class Adapter:
    """Write one file, as a training module writes an adapter."""

    def __init__(self, content: str = "new"):
        self.content = content

    def save_adapter(self, folder: Path, dtype: torch.dtype) -> None:
        folder.mkdir()
        (folder / "weights").write_text(self.content)
        (folder / "adapter_config.json").touch()


@pytest.mark.parametrize("rename", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_swap_keeps_the_old_adapter(tmp_path, monkeypatch, rename, error):
    """An error before or after the first rename leaves the old adapter and nothing else."""
    output, real, renames = tmp_path / "vlm", Path.rename, []
    output.mkdir()
    (output / "weights").write_text("old")

    def fail(self, target):
        renames.append(target)
        if len(renames) == rename:
            raise error
        return real(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(error):
        trainer.save_adapter_atomically(Adapter(), output, {})
    assert (output / "weights").read_text() == "old" and list(tmp_path.iterdir()) == [output]
    trainer.save_adapter_atomically(Adapter(), output, {})
    assert (output / "weights").read_text() == "new"


@pytest.mark.parametrize("rename", [1, 2, 3])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_swap_keeps_the_previous_adapter_too(tmp_path, monkeypatch, rename, error):
    """The adapter before is kept beside the new one, once: it takes the place of an older one, or all stay."""
    output, real, renames = tmp_path / "vlm", Path.rename, []
    for content in ("first", "second"):
        trainer.save_adapter_atomically(Adapter(content), output, {})

    def fail(self, target):
        renames.append(target)
        if len(renames) == rename:
            raise error
        return real(self, target)

    def contents() -> dict[str, str]:
        return {folder.name: (folder / "weights").read_text() for folder in tmp_path.iterdir()}

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(Path, "rename", fail)
        trainer.save_adapter_atomically(Adapter(), output, {})
    assert contents() == {"vlm": "second", "vlm-previous": "first"}
    trainer.save_adapter_atomically(Adapter(), output, {})
    assert contents() == {"vlm": "new", "vlm-previous": "second"}


@pytest.mark.parametrize("module", [finetune, clip])
def test_a_finished_run_is_not_repeated(nano_folder, no_progress, tmp_path, call, module):
    """Equal settings and data train nothing; other ones keep the adapter that was there, and are named."""
    output = tmp_path / "out"
    flags = ["train", "--base", nano_folder, "--data", no_progress, "--output", output, "--batch-size", 3, "--rank", 2]
    commands = module.train, module.test
    assert call(commands, *flags, "--steps", 1)[0] == 0
    first = (output / "training.json").read_text()
    left = tmp_path / "out-run" / "checkpoint-1"  # by a kill while checkpoints were removed
    left.mkdir()
    status, out, err = call(commands, *flags, "--steps", 1)
    assert (status, err) == (0, "") and f"{output} is finished with these settings; delete it to train again" in out
    assert (output / "training.json").read_text() == first and not left.exists()
    status, out, err = call(commands, *flags, "--steps", 2)
    kept = f"{output} differs: --steps was 1, is 2; it will be kept as {output}-previous once this run is finished"
    assert status == 0 and kept in out.splitlines(), err
    assert (tmp_path / "out-previous" / "training.json").read_text() == first
    assert json.loads((output / "training.json").read_text())["config"]["steps"] == 2
    for file in (*(no_progress / "train").glob("*_qa_pairs.json"), *(no_progress / "train").glob("*_captions.json")):
        file.write_text(json.dumps(json.loads(file.read_text())[:-1]))
    _, out, _ = call(commands, *flags, "--steps", 2)
    assert f"{output} differs: the data changed; it will be kept" in out


def test_only_an_adapter_is_replaced_by_the_previous_one(nano_folder, no_progress, tmp_path):
    """A folder of the user's that happens to have its name is an error before anything is trained."""
    train(nano_folder, no_progress, tmp_path, steps=1)
    (tmp_path / "vlm-previous").mkdir()
    (tmp_path / "vlm-previous" / "notes.txt").touch()
    with pytest.raises(InputError, match="vlm-previous: already exists and is not an adapter"):
        train(nano_folder, no_progress, tmp_path, steps=2)


def test_other_data_is_another_run(nano_folder, tiny_data, tmp_path, monkeypatch):
    """A stopped run does not resume with equally many views of other pairs."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at_evaluation(patch, 3)
        train(nano_folder, tiny_data, tmp_path)
    other = shutil.copytree(tiny_data, tmp_path / "other")
    for file in (other / "train").glob("*_qa_pairs.json"):
        rows = json.loads(file.read_text())
        file.write_text(json.dumps([row | {"answer": "tux"} for row in rows]))
    with pytest.raises(InputError, match="other settings: the data changed; resume with its settings"):
        train(nano_folder, other, tmp_path)
    with pytest.raises(InputError, match="other settings: --rank was 4, is 8, and the data changed; "):
        train(nano_folder, other, tmp_path, rank=8)
    assert last_checkpoint(tmp_path / "run")


@pytest.mark.parametrize("module", [finetune, clip])
@pytest.mark.parametrize(
    ("flag", "value"),
    [("steps", 0), ("steps", -1), ("batch_size", 0), ("rank", 0), ("seed", -1), ("learning_rate", float("nan"))],
)
def test_invalid_numbers_are_refused_before_anything_is_read(tmp_path, module, flag, value):
    with pytest.raises(UsageError, match=f"--{flag.replace('_', '-')}: "):
        module.train(data=str(tmp_path / "none"), output=str(tmp_path / "out"), **{flag: value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", [finetune, clip])
def test_only_an_adapter_is_overwritten(nano_folder, no_progress, tmp_path, module):
    """Another folder is an error before anything is trained; an empty folder and an adapter are replaced."""
    output = tmp_path / "notes"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    for there in (output, output / "notes.txt"):
        with pytest.raises(InputError, match="choose another --output"):
            module.train(
                str(nano_folder), data=str(no_progress), output=str(there), run_dir=str(tmp_path / "w"), steps=1
            )
    assert (output / "notes.txt").read_text() == "mine" and not (tmp_path / "w").exists()
    (output / "notes.txt").unlink()
    module.train(str(nano_folder), data=str(no_progress), output=str(output), run_dir=str(tmp_path / "w"), steps=1)
    check_output_dirs(tmp_path / "w", output)
    modes = {file.stat().st_mode & 0o777 for file in output.iterdir()}
    assert len(modes) == 1 and (output / "training.json").exists()


@pytest.mark.parametrize(("module", "generate"), [(finetune, generate_qa), (clip, generate_captions)])
def test_pairs_are_read_from_their_own_folder(nano_folder, no_progress, tmp_path, module, generate):
    """`--pairs` reads what `generate --output` wrote, and only that; the images are those of the data folder."""
    data, pairs, output = no_progress, tmp_path / "pairs", tmp_path / "out"
    settings = {"data": str(data), "output": str(output), "run_dir": str(tmp_path / "run"), "pairs": str(pairs)}
    remedy = f"run `python -m {generate.__name__} generate --split train --data {data} --output {pairs}`"
    with pytest.raises(InputError) as error:
        module.train(str(nano_folder), **settings)
    assert str(error.value).startswith(f"{pairs / 'train'}: no ") and str(error.value).endswith(remedy)
    generate.generate(split="train", data=data, output=pairs)
    for file in (data / "train").glob(f"*{generate.FILE_NAME.removeprefix('generated')}"):
        file.write_text("[]")
    module.train(str(nano_folder), steps=1, **settings)
    assert json.loads((output / "training.json").read_text())["config"]["num_samples"] == 9


def test_a_run_is_found_by_its_name(tmp_path, monkeypatch):
    """A name stands for an adapter in runs, unless a folder here, the submitted checkpoint or a base has it."""
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "vlm", "tux_nano", "mine"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "adapter_config.json").touch()
    for name in ("mine", "runs/demo-run"):
        (tmp_path / name).mkdir()
    assert checkpoint_folder("demo") == checkpoint_folder(Path("demo")) == Path("runs/demo")
    for name in ("mine", "tux_nano", "demo-run", "OWNER/NAME", tmp_path / "mine"):
        assert checkpoint_folder(name) == Path(name)
    assert checkpoint_folder("vlm") == default_checkpoint("vlm")
