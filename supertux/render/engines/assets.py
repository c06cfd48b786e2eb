"""The game assets, for every engine: where they are, and the overlay that makes them fit.

An overlay is a folder of links to the assets, with files of its own in place of some: patched shaders, markers.
"""

import ctypes
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from homework.utils.errors import InputError, first_line

from ..planner import RacePlan
from ..renderer import draw_race
from . import ENGINES, Missing

logger = logging.getLogger(__name__)

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tux-vlm"
# Where packages of the game put its assets.
PREFIXES = ("/usr/share/games", "/usr/share", "/usr/local/share/games", "/usr/local/share", "/opt")
SEARCH_PATH = tuple(Path(prefix) / "supertuxkart/data" for prefix in PREFIXES)
LANDMARKS = ("stk_config.xml", "karts", "tracks", "shaders", "skins")
REMEDY = (
    "install the game assets (Debian, Ubuntu: apt install supertuxkart-data), or give a folder of release 1.4 with "
    "`python -m supertux install-assets --from PATH`"
)
SYSTEM_LIBRARIES = {"libglib-2.0.so.0": "libglib2.0-0", "libEGL.so.1": "libegl1"}  # and Debian's packages of them
EGL_PLATFORM_SURFACELESS = 0x31DD


def find_missing_software(modules: tuple[str, ...] = (), needs_assets: bool = False) -> list[Missing]:
    """Return the missing system packages, by Debian's names, and Python modules.

    With `needs_assets` the package of the game's assets is among them, unless they are in the usual places.
    """
    packages = ["supertuxkart-data"] if needs_assets and not any(map(_has_assets, SEARCH_PATH)) else []
    packages += [package for library, package in SYSTEM_LIBRARIES.items() if _load_error(ctypes.CDLL, library)]
    names = " ".join([*packages, *([] if has_driver() else ["libgl1-mesa-dri"])])
    missing = [Missing(f"system packages are missing ({names})", f"`apt install {names}`")] if names else []
    problems = [f"{name} does not load ({error})" for name in modules if (error := _load_error(import_module, name))]
    if problems:
        missing.append(Missing(", ".join(problems), f"`{sys.executable} -m pip install -r supertux/requirements.txt`"))
    return missing


def _load_error(load: Callable, name: str) -> str | None:
    try:
        load(name)
    except (OSError, ImportError) as error:
        return first_line(error)


def has_driver() -> bool:
    """Return whether EGL can be initialised without a screen."""
    if _load_error(ctypes.CDLL, "libEGL.so.1"):
        return False
    egl = ctypes.CDLL("libEGL.so.1")
    egl.eglGetPlatformDisplay.restype = egl.eglGetDisplay.restype = ctypes.c_void_p
    displays = (egl.eglGetPlatformDisplay(EGL_PLATFORM_SURFACELESS, None, None), egl.eglGetDisplay(None))
    return any(display and egl.eglInitialize(ctypes.c_void_p(display), None, None) for display in displays)


def find_assets(given: Path | None) -> Path:
    """Find the assets in a folder, its `data`, or a folder's in it; or in the usual places. Raises InputError."""
    places = SEARCH_PATH if given is None else (given, given / "data", *sorted(given.glob("*/data")))
    for place in places:
        if _has_assets(place):
            return place.resolve()
    problem = f"no game assets there (a folder with {', '.join(LANDMARKS)})"
    raise InputError(given or "the usual places", problem, REMEDY)


def _has_assets(folder: Path) -> bool:
    return all((folder / name).exists() for name in LANDMARKS)


def replace_overlay(overlay: Path, assets: Path, texts: dict[str, str], links: dict[str, Path]) -> None:
    """Build an overlay of `assets`, in place of an older one; if it fails, that one stays.

    Debian's packages have links to fonts of other packages, without which the engines end. Where these are missing, a
    font that exists takes their place: nothing is written in a race.

    Args:
        texts: files of the overlay's own, path in it -> content.
        links: what others of its paths are linked to, instead of the same path in the assets.
    """
    fonts = sorted((assets / "ttf").glob("*"))
    font = next((font for font in fonts if font.exists()), None)
    links = {f"ttf/{other.name}": font for other in fonts if font and not other.exists()} | links
    folders = {parent for name in (*texts, *links) for parent in Path(name).parents}
    overlay.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=overlay.parent, prefix=f".{overlay.name}.") as name:
        built = Path(name) / "built"
        for folder in sorted(folders):
            (built / folder).mkdir()
            names = [folder / entry.name for entry in (assets / folder).iterdir()]
            links |= {str(name): assets / name for name in names if name not in folders and str(name) not in links}
        for name in links.keys() - texts.keys():
            (built / name).symlink_to(links[name].resolve())
        for name, text in texts.items():
            (built / name).write_text(text)
        shutil.rmtree(overlay, ignore_errors=True)
        built.rename(overlay)


def drawing_environment(folder: Path) -> dict[str, str]:
    """Return the environment of a process that draws: the assets `folder/data`, no screen, one thread, the driver.

    Mesa's anisotropic filter takes seconds per frame in software, so it is switched off.
    """
    home = folder.parent / "home"  # the engine writes its settings there
    home.mkdir(parents=True, exist_ok=True)
    return dict(
        os.environ,
        SUPERTUXKART_DATADIR=f"{folder}/",
        HOME=str(home),
        XDG_RUNTIME_DIR=str(home),
        SDL_VIDEODRIVER="offscreen",
        LP_NUM_THREADS="0",  # llvmpipe draws in the calling thread
        OMP_NUM_THREADS="1",
        OPENBLAS_NUM_THREADS="1",
        PYSTK_LOG_LEVEL="fatal",
        MESA_EXTENSION_OVERRIDE="-GL_EXT_texture_filter_anisotropic -GL_ARB_texture_filter_anisotropic",
    )


def draw_test_frame(preset: str) -> None:
    """Draw one labelled frame with a preset's engine. Raises InputError with the last line of what fails."""
    logger.info("drawing a test frame, which takes up to a minute")
    with tempfile.TemporaryDirectory() as folder:
        is_static = ENGINES[preset].has_static_races
        result = draw_race(RacePlan(0, "xr591", ["tux", "gnu"], 1, is_static, 0, 0, 1, preset, [1, 1]), Path(folder))
    if not result.get("frames"):
        problem = f"cannot draw a frame ({result.get('error', 'its labels cannot be read')})"
        remedy = "apt install libegl1 libgl1-mesa-dri; after a timeout, try again"
        raise InputError(f"--preset {preset}", problem, remedy)
    logger.info(f"ready; now run `python -m supertux render --output data/mine --preset {preset}`")
