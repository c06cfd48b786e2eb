"""The table of what each part brings."""

from dataclasses import fields

import torch

from pretrain import cli
from pretrain.ablate import shorten
from pretrain.config import ALL_PARTS, PartsConfig
from pretrain.vision_stages import VisionStage
from tests.pretrain.tiny_run import tiny_config, tiny_config_file

COMMANDS = (cli.ablate, cli.pack)
PARTS = [field.name for field in fields(PartsConfig)]


def test_every_part_has_a_row(call, tiny_data, tmp_path):
    """Each trained part has a run of its own; run again, nothing is trained and the table is the same."""
    arguments = "--config", tiny_config_file(tmp_path), "--frames", "train", "--data", tiny_data
    tables = []
    for _ in range(2):
        status, out, err = call(COMMANDS, "ablate", *arguments, "--run-dir", tmp_path / "ablate", "--split", "valid")
        assert status == 0, err
        tables.append(out[out.index("without") :])
    assert "step 1 of 1" not in out and tables[0] == tables[1]
    rows = [line.split() for line in tables[0].splitlines()[1:-1]]
    assert [row[0] for row in rows] == ["nothing", *PARTS]
    runs = {file.name for file in (tmp_path / "ablate").iterdir()}
    assert runs == {"all", *("register_tokens", "foveal_branch", "cell_heads", "name_matching_head")}


def test_a_tenth_of_the_budget(tmp_path):
    stages = shorten(tiny_config(tmp_path, "")).stages
    assert {name: (one.steps, one.parts) for name, one in stages.items()} == dict.fromkeys(stages, (1, 1))


def test_each_switch_changes_predictions(tmp_path):
    """On the same weights, each part that acts at inference changes what is predicted, and nothing but that."""
    torch.manual_seed(0)
    stage, pixels = VisionStage(tiny_config(tmp_path)).eval(), torch.randn(2, 3, 100, 150)
    with torch.no_grad():
        for weight in stage.heads.parameters():
            weight.normal_(std=0.3)
    whole = stage.predict(pixels)
    changed = {}
    for part in ("fusion", "poisson_binomial", "flip_tta", "zero_count_bias"):
        stage.parts = PartsConfig(**{name: name != part for name in PARTS})
        after = stage.predict(pixels)
        changed[part] = {name for name, values in after.items() if not torch.allclose(values, whole[name])}
    stage.parts = ALL_PARTS
    assert changed["poisson_binomial"] == {"total", "count"} and changed["zero_count_bias"] == {"count"}
    assert changed["fusion"] == {"ego", "total", "count", "relation"} and changed["flip_tta"] == set(whole)
