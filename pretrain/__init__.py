"""Pretraining of TuxNano, the bundled base model, from random weights."""

from pathlib import Path

BASE_DIR = Path(__file__).parents[1] / "homework" / "weights" / "tux_nano"  # what the last stage writes
