"""The game assets: where they are, and the overlay that makes them fit the engine.

The engine (pystk2) expects the folder layout of release 1.5; Debian's package and the last archive of the assets alone
have 1.4's. The overlay is a folder of links to the assets, with the version's marker, a skin's name, the patched
shaders of `shaders.py`, and without the scripts that open dialogs.
"""

import contextlib
import ctypes
import logging
import lzma
import os
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated

import tyro

from homework.utils.errors import InputError, first_line

from .... import BROKEN_ZIP
from ...planner import RacePlan
from ...subprocesses import run_module
from .. import Missing, check_none_missing
from . import shaders

logger = logging.getLogger(__name__)

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tux-vlm"
OVERLAY = CACHE / "art"
MARKER = f"labels-{shaders.VERSION}"  # in the overlay
SMOKE_TEST_TIMEOUT_S = 300
# Where packages of the game put its assets.
PREFIXES = ("/usr/share/games", "/usr/share", "/usr/local/share/games", "/usr/local/share", "/opt")
SEARCH_PATH = tuple(Path(prefix) / "supertuxkart/data" for prefix in PREFIXES)
LANDMARKS = ("stk_config.xml", "karts", "tracks", "shaders", "skins")
# Tracks whose scripts open a dialog as soon as a kart passes by, which ends an engine without a screen.
SCRIPTED_TRACKS = ("overworld", "tutorial")
REMEDY = (
    "install the game assets (Debian, Ubuntu: apt install supertuxkart-data), or give a folder or an archive of "
    "release 1.4 with `python -m supertux install-assets --from PATH`"
)
PYTHON_MODULES = ("pystk2", "elftools")
SYSTEM_LIBRARIES = {"libglib-2.0.so.0": "libglib2.0-0", "libEGL.so.1": "libegl1"}  # and Debian's packages of them
EGL_PLATFORM_SURFACELESS = 0x31DD


def install_assets(
    *, from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None, karts: Path | None = None
) -> None:
    """Find the game assets, or take them from a folder or an archive, make them fit the engine, and draw a test frame.

    Example: python -m supertux install-assets

    Args:
        from_: folder or archive (tar, zip) of the game's release 1.4; default the usual places
        karts: folder of release 1.2, whose karts look more like the course's
    """
    check_none_missing("install-assets", find_missing_software(needs_assets=from_ is None))
    assets = find_assets(from_)
    build_overlay(assets, OVERLAY, assets if karts is None else locate_assets_in(karts))
    logger.info("drawing a test frame, which takes up to a minute")
    draw_test_frame(RacePlan.smoke_test("sd"), OVERLAY, environment())
    logger.info(f"{assets}: ready in {OVERLAY}; now run `python -m supertux render --output data/mine`")


def find_missing() -> list[Missing]:
    """Return what has to be installed before frames can be drawn; see `engines.Assets`."""
    problem = None
    if not (OVERLAY / "data/karts").exists():  # a link into the assets
        problem = "the game assets are not installed"
    elif not (OVERLAY / MARKER).exists():
        problem = "the game assets were installed by an older version of this program"
    missing = find_missing_software(needs_assets=problem is not None)
    return missing + ([Missing(problem, "`python -m supertux install-assets`")] if problem else [])


def find_missing_software(needs_assets: bool) -> list[Missing]:
    """Return the missing system and Python packages; with `needs_assets` also the game's, unless it can be found."""
    has_assets = any(_has_assets(place) for place in SEARCH_PATH)
    missing = find_missing_libraries(["supertuxkart-data"] if needs_assets and not has_assets else [])
    problems = []
    for name in PYTHON_MODULES:
        try:
            import_module(name)
        except ImportError as error:
            problems.append(f"{name} does not load ({first_line(error)})")
    if problems:
        missing.append(Missing(", ".join(problems), f"`{sys.executable} -m pip install -r supertux/requirements.txt`"))
    return missing


def find_missing_libraries(packages: list[str]) -> list[Missing]:
    """Return the missing system packages, by Debian's names: `packages`, and those of the libraries and the driver."""
    packages = list(packages)
    for library, package in SYSTEM_LIBRARIES.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            packages.append(package)
    if not _has_driver():
        packages.append("libgl1-mesa-dri")
    names = " ".join(packages)
    return [Missing(f"system packages are missing ({names})", f"`apt install {names}`")] if packages else []


def _has_driver() -> bool:
    """Return whether EGL can be initialised without a screen."""
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return False
    egl.eglGetPlatformDisplay.restype = egl.eglGetDisplay.restype = ctypes.c_void_p
    displays = (egl.eglGetPlatformDisplay(EGL_PLATFORM_SURFACELESS, None, None), egl.eglGetDisplay(None))
    return any(display and egl.eglInitialize(ctypes.c_void_p(display), None, None) for display in displays)


def find_assets(given: Path | None) -> Path:
    """Find the folder with `stk_config.xml`, in a folder or archive, or in the usual places. Raises InputError."""
    if given is None:
        for place in SEARCH_PATH:
            if _has_assets(place):
                return place
        raise InputError("supertuxkart-data", "the game assets are not in a usual place", REMEDY)
    return _unpack(given) if given.is_file() else locate_assets_in(given)


def locate_assets_in(folder: Path, given: Path | None = None) -> Path:
    """Return the assets in a folder (itself, its `data`, or the `data` of a folder in it). Raises InputError."""
    for place in (folder, folder / "data", *sorted(folder.glob("*/data"))):
        if _has_assets(place):
            return place.resolve()
    raise InputError(given or folder, f"no game assets there (a folder with {', '.join(LANDMARKS)})", REMEDY)


def _has_assets(folder: Path) -> bool:
    return all((folder / name).exists() for name in LANDMARKS)


def _unpack(archive: Path) -> Path:
    """Unpack an archive of assets into the cache, in place of an earlier one, and return the assets."""
    target = CACHE / "unpacked"
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".unpacked.") as name:
        unpacked = Path(name) / "unpacked"
        try:
            if zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as file:
                    file.extractall(unpacked)  # drops absolute paths and `..` by itself
            else:
                with tarfile.open(archive) as file:
                    file.extractall(unpacked, filter="data")
        except (*BROKEN_ZIP, tarfile.TarError, lzma.LZMAError) as error:
            raise InputError(archive, f"not a complete tar or zip ({first_line(error)})", REMEDY) from None
        place = locate_assets_in(unpacked, archive).relative_to(unpacked.resolve())
        shutil.rmtree(target, ignore_errors=True)
        unpacked.rename(target)
    return target.resolve() / place


def build_overlay(assets: Path, overlay: Path, karts: Path | None = None) -> None:
    """Build the overlay of `assets`, with the karts of the assets `karts`, in place of an older one."""
    texts = shaders.patch_shaders(assets)
    # the field of view of four and more cameras (75 degrees, as in the course's frames) for one to three as well
    texts["stk_config.xml"] = re.sub(r'fov-([123])="[\d.]+"', r'fov-\1="75"', (assets / "stk_config.xml").read_text())
    texts |= {f"tracks/{track}/scripting.as": "void onStart() {}\n" for track in SCRIPTED_TRACKS}
    with replaced_folder(overlay) as temporary:
        data = temporary / "data"
        link_files(assets, data, {*texts, "skins/classic"})
        if karts is not None:
            (data / "karts").unlink()
            (data / "karts").symlink_to((karts / "karts").resolve())
        for name, text in texts.items():
            (data / name).write_text(text)
        has_skin = (assets / "skins/classic").exists()
        (data / "skins/classic").symlink_to(assets / "skins" / ("classic" if has_skin else "peach"))
        (data / "supertuxkart.1.5").touch()
        (temporary / MARKER).touch()


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of `folder` only if the block succeeds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def link_files(source: Path, target: Path, excluded: set[str]) -> None:
    """Link all of `source` into `target`, but for the files in `excluded`, whose folders are made.

    Debian's packages have links to fonts of other packages, without which the engines end. Where these are missing, a
    font that exists takes their place: nothing is written in a race.
    """
    fonts = sorted((source / "ttf").glob("*"))
    missing = {f"ttf/{font.name}" for font in fonts if not font.exists()}
    present = [font for font in fonts if font.exists()]
    folders = {parent for name in excluded | missing for parent in Path(name).parents}
    _link(source, target, folders)
    for name in excluded | missing:
        (target / name).unlink(missing_ok=True)
    for name in missing if present else ():
        (target / name).symlink_to(present[0].resolve())


def _link(source: Path, target: Path, folders: set[Path], path: Path = Path(".")) -> None:
    """Link the entries of `source` into `target`; make those in `folders`, and link their entries in the same way."""
    (target / path).mkdir(parents=True, exist_ok=True)
    for entry in sorted((source / path).iterdir()):
        inner = path / entry.name
        if inner in folders:
            _link(source, target, folders, inner)
        else:
            (target / inner).symlink_to(entry.resolve())


def environment(overlay: Path | None = None) -> dict[str, str]:
    """Return the environment of a process that draws: the assets, no screen, one thread, and a driver setting.

    Mesa's anisotropic filter takes seconds per frame in software, so it is switched off.
    """
    overlay = overlay or OVERLAY
    home = overlay.parent / "home"  # the engine writes its settings there
    home.mkdir(parents=True, exist_ok=True)
    return dict(
        os.environ,
        SUPERTUXKART_DATADIR=f"{overlay}/",
        HOME=str(home),
        XDG_RUNTIME_DIR=str(home),
        SDL_VIDEODRIVER="offscreen",
        LP_NUM_THREADS="0",  # llvmpipe draws in the calling thread
        OMP_NUM_THREADS="1",
        OPENBLAS_NUM_THREADS="1",
        PYSTK_LOG_LEVEL="fatal",
        MESA_EXTENSION_OVERRIDE="-GL_EXT_texture_filter_anisotropic -GL_ARB_texture_filter_anisotropic",
    )


def interpreter() -> Path:
    """Return the Python that has the engine: this one."""
    return Path(sys.executable)


def draw_test_frame(
    plan: RacePlan, installed: Path, environment: dict[str, str], python: Path = Path(sys.executable)
) -> None:
    """Draw one labelled frame. Raises InputError for `installed` with the last line of what fails."""
    with tempfile.TemporaryDirectory() as folder:
        process = {"environment": environment, "timeout": SMOKE_TEST_TIMEOUT_S, "python": python}
        problem = run_module("supertux.render.worker", folder, stdin=plan.to_json(), **process)
        if problem or not list(Path(folder).glob("*_info.json")):
            problem = f"cannot draw a frame ({problem or 'its labels cannot be read'})"
            raise InputError(installed, problem, "apt install libegl1 libgl1-mesa-dri; after a timeout, try again")
