"""What training shares: an adapter is swapped whole, a run goes on with its own data, bad numbers are refused."""

import json
import shutil
from pathlib import Path

import pytest

from homework import clip, finetune, training
from homework.errors import InputError, UsageError

from .test_finetune import stop_at_evaluation, train


class Adapter:
    """What `publish` needs of a module."""

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
        training.publish(Adapter(), output, {})
    assert (output / "weights").read_text() == "old" and list(tmp_path.iterdir()) == [output]
    training.publish(Adapter(), output, {})
    assert (output / "weights").read_text() == "new"


def test_other_answers_are_another_run(nano_folder, tiny_data, tmp_path, monkeypatch):
    """A stopped run does not go on with as many views of other pairs."""
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
