"""The game's art: where it is, and the overlay that makes it fit the engine.

The engine (pystk2) expects the folder layout of release 1.5; Debian's package and the last archive of the art alone
have 1.4's. The overlay is a folder of links to the art, with the version's marker, a skin's name, the changed shaders
of `shaders.py`, and without the scripts that open dialogs.
"""

import logging
import lzma
import os
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated

import tyro

from homework.utils.errors import InputError, first_line

from .... import BROKEN_ZIP
from ... import subprocesses as child
from ...planner import RacePlan
from . import shaders

logger = logging.getLogger(__name__)

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tux-vlm"
OVERLAY = CACHE / "art"
CHECK_LIMIT = 300  # seconds for the first frame
MARKER = f"labels-{shaders.VERSION}"  # in the overlay
# Where packages of the game put its art.
PLACES = tuple(
    Path(place) / "supertuxkart/data"
    for place in ("/usr/share/games", "/usr/share", "/usr/local/share/games", "/usr/local/share", "/opt")
)
LANDMARKS = ("stk_config.xml", "karts", "tracks", "shaders", "skins")
# Tracks whose scripts open a dialog as soon as a kart passes by, which ends an engine without a screen.
SCRIPTED_TRACKS = ("overworld", "tutorial")
REMEDY = (
    "install the game's art (Debian, Ubuntu: apt install supertuxkart-data libegl1 libgl1-mesa-dri), or give a folder "
    "or an archive of release 1.4 with `python -m supertux install-art --from PATH`"
)


def install_art(*, from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None, karts: Path | None = None) -> None:
    """Find the game's art, or take it from a folder or an archive, make it fit the engine, and draw a frame with it.

    Example: python -m supertux install-art

    Args:
        from_: a folder or archive (tar, zip) of the game's release 1.4; without it, the usual places
        karts: a folder of release 1.2, whose karts look more like the course's
    """
    require_engine()
    art = find(from_)
    build(art, OVERLAY, art if karts is None else inside(karts, karts))
    logger.info("drawing a frame with it, which takes up to a minute")
    check(RacePlan.for_check(), OVERLAY, environment(OVERLAY))
    logger.info(f"{art}: ready in {OVERLAY}; now run `python -m supertux render --out data/mine`")


def require_engine() -> None:
    """Raises InputError when the engine is not installed."""
    try:
        import pystk2  # noqa: F401
    except ImportError as error:
        remedy = f"{sys.executable} -m pip install -r supertux/requirements.txt; a missing lib*.so: apt install libegl1"
        raise InputError("pystk2", f"the game's engine does not load ({first_line(error)})", remedy) from None


def installed() -> Path:
    """The overlay that `install_art` made.

    Raises:
        InputError: there is none, the art that it points to has gone, or it is an older one of this program.
    """
    if not (OVERLAY / "data/karts").exists():  # a link into the art
        raise InputError(OVERLAY, "the game's art is not installed", "run `python -m supertux install-art`")
    if not (OVERLAY / MARKER).exists():
        raise InputError(OVERLAY, "an older version of this program made it", "run `python -m supertux install-art`")
    return OVERLAY


def find(given: Path | None) -> Path:
    """The folder with the art's `stk_config.xml`: the given one, one unpacked from the given archive, or a usual place.

    Raises:
        InputError: there is none.
    """
    if given is None:
        for place in PLACES:
            if _is_art(place):
                return place
        raise InputError("supertuxkart-data", "the game's art is not in a usual place", REMEDY)
    if given.is_file():
        return _unpack(given)
    return inside(given, given)


def inside(folder: Path, given: Path) -> Path:
    """The art in a folder: itself, its `data`, or the `data` of a folder in it."""
    for place in (folder, folder / "data", *sorted(folder.glob("*/data"))):
        if _is_art(place):
            return place.resolve()
    raise InputError(given, f"no game's art there (a folder with {', '.join(LANDMARKS)})", REMEDY)


def _is_art(folder: Path) -> bool:
    return all((folder / name).exists() for name in LANDMARKS)


def _unpack(archive: Path) -> Path:
    """The art of an archive, unpacked into the cache in place of an earlier one, once it is known to be art."""
    target = CACHE / "unpacked"
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".unpacked.") as name:
        whole = Path(name) / "whole"
        try:
            if zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as file:
                    file.extractall(whole)  # drops absolute paths and `..` by itself
            else:
                with tarfile.open(archive) as file:
                    file.extractall(whole, filter="data")
        except (*BROKEN_ZIP, tarfile.TarError, lzma.LZMAError) as error:
            raise InputError(archive, f"not a whole tar or zip ({str(error).partition(chr(10))[0]})", REMEDY) from None
        place = inside(whole, archive).relative_to(whole.resolve())
        shutil.rmtree(target, ignore_errors=True)
        whole.rename(target)
    return target.resolve() / place


def build(art: Path, overlay: Path, karts: Path | None = None) -> None:
    """Make the overlay of `art`, with the karts of `karts`, whole or not at all; an older one gives way.

    Raises:
        InputError: the art's shaders are of another release.
    """
    texts = shaders.patched(art)
    texts["stk_config.xml"] = _one_field_of_view((art / "stk_config.xml").read_text())
    texts |= {f"tracks/{track}/scripting.as": "void onStart() {}\n" for track in SCRIPTED_TRACKS}
    overlay.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=overlay.parent, prefix=f".{overlay.name}."))
    try:
        data = temporary / "data"
        overlay_of(art, data, {*texts, "skins/classic"})
        if karts is not None:
            (data / "karts").unlink()
            (data / "karts").symlink_to((karts / "karts").resolve())
        for name, text in texts.items():
            (data / name).write_text(text)
        has_skin = (art / "skins/classic").exists()
        (data / "skins/classic").symlink_to(art / "skins" / ("classic" if has_skin else "peach"))
        (data / "supertuxkart.1.5").touch()
        (temporary / MARKER).touch()
        shutil.rmtree(overlay, ignore_errors=True)
        temporary.replace(overlay)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _one_field_of_view(config: str) -> str:
    """The field of view of four and more cameras (75 degrees, as in the course's frames) for one to three as well."""
    return re.sub(r'fov-([123])="[\d.]+"', r'fov-\1="75"', config)


def overlay_of(source: Path, target: Path, own: set[str]) -> None:
    """Links in `target` to all of the art, but for the files `own`, whose folders are made and which are left out.

    Debian's packages have links to fonts of other packages, without which the engines end. Where these are missing, a
    font that is there takes their place: nothing is written in a race.
    """
    fonts = sorted((source / "ttf").glob("*"))
    missing = {f"ttf/{font.name}" for font in fonts if not font.exists()}
    there = [font for font in fonts if font.exists()]
    folders = {parent for name in own | missing for parent in Path(name).parents}
    _link(source, target, folders)
    for name in own | missing:
        (target / name).unlink(missing_ok=True)
    for name in missing if there else ():
        (target / name).symlink_to(there[0].resolve())


def _link(source: Path, target: Path, real: set[Path], path: Path = Path(".")) -> None:
    """Links in `target` to all that is in `source`; the folders in `real` are made, and filled in the same way."""
    (target / path).mkdir(parents=True)
    for entry in sorted((source / path).iterdir()):
        inner = path / entry.name
        if inner in real:
            _link(source, target, real, inner)
        else:
            (target / inner).symlink_to(entry.resolve())


def environment(overlay: Path) -> dict[str, str]:
    """What a process that draws needs: the art, no screen, one thread, and a driver setting.

    Mesa's anisotropic filter takes seconds a frame in software, so it is switched off.
    """
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


def check(plan: RacePlan, place: Path, environment: dict[str, str], python: Path = Path(sys.executable)) -> None:
    """Draw one labelled frame in a process of its own; `place` is what is checked, for the rest see `child.run`.

    Raises:
        InputError: it does not come to an end, or has no labels; with the engine's last words.
    """
    with tempfile.TemporaryDirectory() as folder:
        task = {"text": plan.to_json(), "environment": environment, "limit": CHECK_LIMIT, "python": python}
        problem = child.run("supertux.render.worker", folder, **task)
        if problem or not list(Path(folder).glob("*_info.json")):
            words = f"no frame could be drawn ({problem or 'its labels cannot be read'})"
            raise InputError(place, words, "apt install libegl1 libgl1-mesa-dri; if it only took long, try again")
