"""The legacy engine, PySuperTuxKart 1.1.2, which drew the course's frames, and the assets of release 1.2 that fit it.

Its wheels are for Python 3.10 at most, so it gets a virtual environment of its own. The assets that it was published
with are no longer available; release 1.2, two months younger, has the same tracks and karts (but for beastie and
hexley). It lacks the shaders by which this engine labels each pixel with its object; they are written here, into
patched copies of the assets'.
"""

import logging
import subprocess
from pathlib import Path

from homework.utils.errors import InputError

from .. import Missing, check_none_missing
from ..assets import CACHE, draw_test_frame, drawing_environment, find_assets, find_missing_software, replace_overlay
from ..pystk2 import shaders

logger = logging.getLogger(__name__)

INSTALL_DIR = CACHE / "course"  # the engine, its assets and its settings
INTERPRETER = INSTALL_DIR / "venv/bin/python"
PACKAGE = "PySuperTuxKart==1.1.2"  # its own requirement, a package that downloads the assets, can't be installed
REQUIREMENTS = ("numpy<2", "pillow")
REMEDY = "`python -m supertux install-legacy-engine --assets PATH` (docs/RENDERING.md says where to get the assets)"
NO_COMPUTE_SHADERS = "-GL_ARB_compute_shader"  # slower than the fragment shaders that then take their place

# Declarations and last lines.
_VERTEX_LABEL = ("layout(location = 13) in uint i_label;\nflat out uint label;\n", "    label = i_label;\n}\n")
_FRAGMENT_LABEL = ("flat in uint label;\nlayout(location = 3) out uint o_label;\n", "    o_label = label;\n}\n")
# Added to the assets. `track*` separate the road from its surroundings in the engine: here they copy the labels, and
# draw no road. `gaussian6*` blur the bloom: of the 11 pixels that the game reads, all but five weigh next to nothing
# with its widths, and two pairs of the five are read as one, between the two.
ADDED_SHADERS = Path(__file__).parent / "shaders"


def install_legacy_engine(*, assets: Path, python: str = "python3.10") -> None:
    """Install the legacy engine, make the assets of release 1.2 fit it, and draw a test frame.

    Example: python -m supertux install-legacy-engine --assets stk-1.2/usr/share/games/supertuxkart

    Args:
        assets: folder of the game's release 1.2
        python: a Python 3.10, for which the engine was built
    """
    found = find_assets(assets)
    check_none_missing("install-legacy-engine", find_missing_software())
    build_overlay(found, INSTALL_DIR)
    logger.info(f"installing {PACKAGE} for {python}")
    pip = [str(INTERPRETER), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    for command in ([python, "-m", "venv", "--clear", str(INSTALL_DIR / "venv")], [*pip, PACKAGE, *REQUIREMENTS]):
        try:
            subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            last = (getattr(error, "stderr", "").strip() or str(error)).splitlines()[-1]
            problem = f"cannot install the engine ({last})"
            raise InputError(python, problem, "name a Python 3.10 with --python") from None
    # in place of the package that can't be installed: the engine reads the assets' folder from this module
    site = next((INSTALL_DIR / "venv/lib").glob("python3.*/site-packages"))
    (site / "pystk_data.py").write_text(f"data_dir = {str(INSTALL_DIR) + '/'!r}\n")
    draw_test_frame("course")


def find_missing() -> list[Missing]:
    """Return what has to be installed before frames can be drawn, in the order in which to install it."""
    missing = find_missing_software()
    if not (INSTALL_DIR / "data/karts").exists() or not INTERPRETER.exists():
        missing.append(Missing("the legacy engine is not installed", REMEDY))
    return missing


def build_overlay(assets: Path, folder: Path) -> None:
    """Build the overlay of `assets` in `folder`, in place of an older one. Raises InputError for another release's."""
    replace_overlay(folder / "data", assets, patch_shaders(assets) | {"supertuxkart.git": ""}, {})


def patch_shaders(assets: Path) -> dict[str, str]:
    """Return the patched and the added shaders: path in the assets' folder -> text. Raises as `apply_patches`."""
    patches = shaders.label_patches(_VERTEX_LABEL, _FRAGMENT_LABEL)
    texts = shaders.apply_patches(assets, patches, "1.2", REMEDY)
    return texts | {f"shaders/{path.name}": path.read_text() for path in ADDED_SHADERS.iterdir()}


def environment() -> dict[str, str]:
    """Return the environment of a process that draws with this engine."""
    settings = drawing_environment(INSTALL_DIR)
    settings["MESA_EXTENSION_OVERRIDE"] += " " + NO_COMPUTE_SHADERS
    return settings
