"""The overlay of the game assets for pystk2.

The engine expects the folder layout of release 1.5; Debian's package and the last archive of the assets alone have
1.4's. The overlay has the version's marker, a skin's name, the patched shaders of `shaders.py`, and lacks the scripts
that open dialogs.
"""

import re
import sys
from pathlib import Path
from typing import Annotated

import tyro

from .. import Missing, check_none_missing
from ..assets import CACHE, draw_test_frame, drawing_environment, find_assets, find_missing_software, replace_overlay
from . import shaders

INTERPRETER = Path(sys.executable)
OVERLAY = CACHE / "art"
MARKER = f"data/labels-{shaders.VERSION}"  # in the overlay
# Tracks whose scripts open a dialog as soon as a kart passes by, which ends an engine without a screen.
SCRIPTED_TRACKS = ("overworld", "tutorial")
PYTHON_MODULES = ("pystk2", "elftools")


def install_assets(*, from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None) -> None:
    """Find the game assets, or take them from a folder, make them fit the engine, and draw a test frame.

    Example: python -m supertux install-assets

    Args:
        from_: folder of the game's release 1.4; default the usual places
    """
    check_none_missing("install-assets", find_missing_software(PYTHON_MODULES, needs_assets=from_ is None))
    build_overlay(find_assets(from_), OVERLAY)
    draw_test_frame("hd")


def find_missing() -> list[Missing]:
    """Return what has to be installed before frames can be drawn, in the order in which to install it."""
    problem = None
    if not (OVERLAY / "data/karts").exists():  # a link into the assets
        problem = "the game assets are not installed"
    elif not (OVERLAY / MARKER).exists():
        problem = "the game assets were installed by an older version of this program"
    missing = find_missing_software(PYTHON_MODULES, needs_assets=problem is not None)
    return missing + ([Missing(problem, "`python -m supertux install-assets`")] if problem else [])


def build_overlay(assets: Path, overlay: Path) -> None:
    """Build the overlay of `assets`, in place of an older one."""
    texts = shaders.patch_shaders(assets) | {"supertuxkart.1.5": "", Path(MARKER).name: ""}
    # the field of view of four and more cameras (75 degrees, as in the course's frames) for one to three as well
    texts["stk_config.xml"] = re.sub(r'fov-([123])="[\d.]+"', r'fov-\1="75"', (assets / "stk_config.xml").read_text())
    texts |= {f"tracks/{track}/scripting.as": "void onStart() {}\n" for track in SCRIPTED_TRACKS}
    links = {} if (assets / "skins/classic").exists() else {"skins/classic": assets / "skins/peach"}
    replace_overlay(overlay / "data", assets, texts, links)


def environment(overlay: Path | None = None) -> dict[str, str]:
    """Return the environment of a process that draws with this engine."""
    return drawing_environment(overlay or OVERLAY)
