"""A run of tiny stages: its config."""

from pathlib import Path

from pretrain.config import RunConfig, load_config

TOML = """
extends = "cpu.toml"
held_out_period = 3

[vision]
channels = [8, 16, 16, 24]
blocks = [0, 1, 1, 1]
foveal_channels = [8, 16, 24]
foveal_blocks = [1, 1, 0]
hidden_size = 64
num_layers = 1
num_heads = 4

[text]
hidden_size = 48
intermediate_size = 96
num_layers = 2
num_heads = 4
num_kv_heads = 2
head_dim = 12

[words]
common_tokens = 0
synthetic_scenes = 2

[stages]
fovea = { steps = 2, batch_size = 2 }
vision = { steps = 6, batch_size = 2 }
read = { steps = 2 }
text = { steps = 2, batch_size = 2, parts = 2 }
"""


def tiny_config(folder: Path, changes: str = "", frames: str | None = "train") -> RunConfig:
    """Load the tiny config with changes, lines of TOML for its top level."""
    return load_config(tiny_config_file(folder, changes), frames)


def tiny_config_file(folder: Path, changes: str = "") -> Path:
    """Write the tiny config with changes."""
    (folder / "tiny.toml").write_text(TOML.replace("held_out_period = 3\n", f"held_out_period = 3\n{changes}\n"))
    return folder / "tiny.toml"
