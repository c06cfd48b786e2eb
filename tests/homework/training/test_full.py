"""benchmarks/full: the fine-tunes that LoRA is compared with."""

import torch
from safetensors.torch import load_file

from benchmarks.full import WEIGHTS, clip_encoders, vlm
from homework import clip
from homework.models.loading import load_model
from tests.conftest import TRACKS, write_frame


def test_full_fine_tune_trains_every_weight(nano_folder, tiny_data, tmp_path, capsys):
    """After two steps no matrix of the model is what it was, and all of valid has been asked."""
    vlm(str(nano_folder), str(tiny_data), str(tmp_path / "out"), steps=2, batch_size=3)
    out = capsys.readouterr().out
    assert "all weights on all of valid" in out and "mean of kinds" in out
    before = {f"peft.{name}": weight for name, weight in load_model(str(nano_folder)).named_parameters()}
    after = load_file(tmp_path / "out" / WEIGHTS)
    matrices = {name for name, weight in before.items() if weight.ndim > 1} & after.keys()
    assert len(matrices) > 20
    assert not [name for name in matrices if torch.equal(before[name], after[name])]


def test_frozen_encoders_stay(nano_folder, tiny_data, tmp_path, capsys):
    """With frozen encoders the projections alone learn; else the encoders do too."""
    for number, track in enumerate(TRACKS):  # so many that false captions of each kind can be made
        write_frame(tiny_data / "valid", f"000b{number}", track)
    before = dict(clip.build(str(nano_folder)).named_parameters())
    for frozen in (True, False):
        output = tmp_path / f"frozen_{frozen}"
        clip_encoders(str(nano_folder), str(tiny_data), str(output), steps=2, batch_size=3, frozen=frozen, questions=5)
        assert "5 questions, chance 20.0" in capsys.readouterr().out
        after = load_file(output / WEIGHTS)
        same = {name for name, weight in before.items() if torch.equal(weight, after[f"peft.{name}"])}
        encoders = {name for name in before if name.startswith(clip.BASE_MODEL_PREFIXES) and before[name].ndim > 1}
        assert encoders <= same if frozen else len(encoders & same) < len(encoders) / 4
        assert "vision_projection.weight" not in same or not frozen
