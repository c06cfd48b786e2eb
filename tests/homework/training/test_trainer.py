"""Training of VLM and CLIP: adapters are swapped whole, a run resumes with its own data only, bad numbers are refused."""

import json
import shutil
from pathlib import Path

import pytest

from homework import clip, finetune
from homework.models.loading import DEFAULT_BASE, load_for_inference, resolve_base
from homework.training import trainer as training
from homework.utils.errors import InputError, UsageError
from tests.homework.test_finetune import stop_at_evaluation, train


class Adapter:
    """What `save_adapter_atomically` needs of a module."""

    def save_adapter(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").write_text("new")


@pytest.mark.parametrize("rename", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_stopped_while_the_folders_are_swapped_the_old_adapter_stays(tmp_path, monkeypatch, rename, error):
    """After the first folder was moved, or before it; nothing else is left."""
    output, real, renames = tmp_path / "vlm", Path.rename, []
    output.mkdir()
    (output / "weights").write_text("old")

    def stopped(self, target):
        renames.append(target)
        if len(renames) == rename:
            raise error
        return real(self, target)

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(error):
        training.save_adapter_atomically(Adapter(), output, {})
    assert (output / "weights").read_text() == "old" and list(tmp_path.iterdir()) == [output]
    training.save_adapter_atomically(Adapter(), output, {})
    assert (output / "weights").read_text() == "new"


def test_other_answers_are_another_run(nano_folder, tiny_data, tmp_path, monkeypatch):
    """A stopped run does not resume with equally many views of other pairs."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at_evaluation(patch, 3)
        train(nano_folder, tiny_data, tmp_path)
    other = shutil.copytree(tiny_data, tmp_path / "other")
    for file in (other / "train").glob("*_qa_pairs.json"):
        rows = json.loads(file.read_text())
        file.write_text(json.dumps([row | {"answer": "tux"} for row in rows]))
    with pytest.raises(InputError, match="other settings"):
        train(nano_folder, other, tmp_path)
    assert training.last_checkpoint(tmp_path / "work")


@pytest.mark.parametrize("module", [finetune, clip])
@pytest.mark.parametrize(
    ("flag", "value"),
    [("steps", 0), ("steps", -1), ("batch_size", 0), ("rank", 0), ("seed", -1), ("learning_rate", float("nan"))],
)
def test_numbers_that_cannot_be_are_refused_before_anything_is_read(tmp_path, module, flag, value):
    with pytest.raises(UsageError, match=f"--{flag.replace('_', '-')}: "):
        module.train(data=str(tmp_path / "none"), output=str(tmp_path / "out"), **{flag: value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", [finetune, clip])
def test_what_is_no_adapter_is_not_replaced(nano_folder, tiny_data, tmp_path, module):
    """Said before anything is trained; an empty folder and an adapter may be replaced."""
    output = tmp_path / "notes"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    for there in (output, output / "notes.txt"):
        with pytest.raises(InputError, match="choose another --output"):
            module.train(str(nano_folder), data=str(tiny_data), output=str(there), run_dir=str(tmp_path / "w"), steps=1)
    assert (output / "notes.txt").read_text() == "mine" and not (tmp_path / "w").exists()
    (output / "notes.txt").unlink()
    module.train(str(nano_folder), data=str(tiny_data), output=str(output), run_dir=str(tmp_path / "w"), steps=1)
    training.check_output_dir(output)
    rights = {file.stat().st_mode & 0o777 for file in output.iterdir()}
    assert len(rights) == 1 and (output / "training.json").exists()


def test_names_of_bases(tmp_path, monkeypatch):
    """A mistyped path is not looked up on the hub, and a folder called tux_nano does not hide the bundled base."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tux_nano").mkdir()
    assert resolve_base("tux_nano") == DEFAULT_BASE
    assert resolve_base("HuggingFaceTB/SmolVLM-256M-Instruct") == "HuggingFaceTB/SmolVLM-256M-Instruct"
    (tmp_path / "mine" / "vlm").mkdir(parents=True)
    for load in (load_for_inference, clip.load):
        with pytest.raises(InputError, match="mine/vlmm: no such .*did you mean vlm"):
            load("mine/vlmm")
