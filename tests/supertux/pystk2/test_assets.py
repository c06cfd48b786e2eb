"""Where the game's art is found, and the overlay that makes it fit the engine."""

import io
import os
import random
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from homework.utils.errors import InputError
from supertux.render.engines.pystk2 import assets as module
from supertux.render.engines.pystk2.assets import build, environment, find, install_art, installed
from tests.conftest import assert_one_line_error
from tests.supertux.pystk2.test_shaders import CONFIG, write_art

FLIPPED = (("art.zip", "flip"), ("art.xz", "flip"))  # tarfile does not read a gz's sum


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> Path:
    """A cache of the test's own, and no art in the usual places."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(module, "CACHE", cache)
    monkeypatch.setattr(module, "OVERLAY", cache / "art")
    monkeypatch.setattr(module, "PLACES", (tmp_path / "usual/data", tmp_path / "other/data"))
    return cache


@pytest.fixture
def art(tmp_path: Path) -> Path:
    return write_art(tmp_path / "stk")


def pack(art: Path, path: Path) -> Path:
    """The art in an archive, in a folder as the game's are."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for entry in sorted(art.rglob("*")):
                file.write(entry, Path("stk-1.4/data") / entry.relative_to(art))
    else:
        with tarfile.open(path, "w:" + path.suffix[1:]) as file:
            file.add(art, "stk-1.4/data")
    return path


def test_usual_places_are_searched_in_order(art: Path, tmp_path: Path):
    with pytest.raises(InputError, match="apt install supertuxkart-data.* --from PATH"):
        find(None)
    (tmp_path / "usual/data").mkdir(parents=True)  # a package's folder without the art
    shutil.copytree(art, tmp_path / "other/data")
    assert find(None) == tmp_path / "other/data"
    shutil.copytree(art, tmp_path / "usual/data", dirs_exist_ok=True)
    assert find(None) == tmp_path / "usual/data"


def test_a_folder_may_be_the_art_or_hold_it(art: Path, tmp_path: Path):
    assert find(art) == art
    (tmp_path / "game").mkdir()
    art.rename(tmp_path / "game/data")
    assert find(tmp_path / "game") == tmp_path / "game/data"
    (tmp_path / "above").mkdir()
    (tmp_path / "game").rename(tmp_path / "above/stk-1.4")
    assert find(tmp_path / "above") == tmp_path / "above/stk-1.4/data"


def test_a_relative_folder_makes_links_that_hold_anywhere(art: Path, tmp_path: Path, monkeypatch, cache: Path):
    monkeypatch.chdir(tmp_path)
    build(find(Path("stk")), cache / "art")
    monkeypatch.chdir("/")
    assert (cache / "art/data/karts/tux/kart.xml").read_text() == "<kart/>"
    assert (cache / "art/data/stk_config.xml").read_text() == CONFIG.replace("80", "75").replace("65", "75").replace(
        "50", "75"
    )
    assert (cache / "art/data/skins/classic/stkskin.xml").exists()


@pytest.mark.parametrize("name", ["art.zip", "art.gz", "art.xz"])
def test_an_archive_is_unpacked_into_the_cache(art: Path, tmp_path: Path, cache: Path, name: str):
    archive = pack(art, tmp_path / name)
    for _ in range(2):  # a second time in place of the first
        found = find(archive)
        assert found.is_relative_to(cache)
        assert (found / "stk_config.xml").read_text() == CONFIG
        assert len(list(found.rglob("*"))) == len(list(art.rglob("*")))
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "harm"),
    [*((f"art.{end}", harm) for end in ("zip", "gz", "xz") for harm in ("cut", "empty")), *FLIPPED],
)
def test_a_broken_archive_is_one_line_and_leaves_nothing(art: Path, tmp_path: Path, cache: Path, name: str, harm: str):
    rng = random.Random(1)
    (art / "words.txt").write_text(" ".join(str(rng.randrange(3000)) for _ in range(50_000)))
    archive = pack(art, tmp_path / name)
    content = bytearray(archive.read_bytes())
    middle = len(content) // 2
    if harm == "flip":
        content[middle : middle + 40] = bytes(byte ^ 0xFF for byte in content[middle : middle + 40])
    archive.write_bytes(content[: {"cut": middle, "empty": 0, "flip": None}[harm]])
    with pytest.raises(InputError) as error:
        find(archive)
    assert str(error.value).startswith(f"{archive}: ") and "\n" not in str(error.value)
    assert list(cache.iterdir()) == []


def test_an_archive_cannot_write_elsewhere(tmp_path: Path, cache: Path):
    archive = tmp_path / "evil.tar"
    with tarfile.open(archive, "w") as file:
        entry = tarfile.TarInfo("../../evil")
        entry.size = 4
        file.addfile(entry, io.BytesIO(b"evil"))
    with pytest.raises(InputError, match="evil.tar"):
        find(archive)
    assert not list(tmp_path.rglob("evil")) and list(cache.iterdir()) == []


def test_what_is_not_art_is_named(art: Path, tmp_path: Path):
    shutil.rmtree(art / "karts")
    for path in (art, tmp_path / "missing"):
        with pytest.raises(InputError, match="no game's art there .*karts") as error:
            find(path)
        assert str(error.value).startswith(f"{path}: ")


def test_the_karts_may_be_of_another_release(art: Path, tmp_path: Path, cache: Path):
    older = write_art(tmp_path / "older")
    (older / "karts/tux/kart.xml").write_text("<older/>")
    build(art, cache / "art", older)
    assert (cache / "art/data/karts/tux/kart.xml").read_text() == "<older/>"
    assert (cache / "art/data/tracks/abyss").resolve() == art / "tracks/abyss"


def test_karts_of_nowhere_are_named(art: Path, tmp_path: Path, monkeypatch, call, cache: Path):
    monkeypatch.setattr(module, "require_engine", lambda: None)
    result = call((install_art,), "install-art", "--from", art, "--karts", tmp_path / "nowhere")
    assert_one_line_error(result, str(tmp_path / "nowhere"))
    assert not cache.exists()


def test_the_overlay_is_links_and_a_few_files_of_its_own(art: Path, cache: Path):
    before = {path: path.read_bytes() for path in art.rglob("*") if path.is_file()}
    build(art, cache / "art")
    data = cache / "art/data"
    assert (data / "karts").is_symlink() and (data / "tracks/abyss").resolve() == art / "tracks/abyss"
    assert (data / "shaders/other.vert").read_bytes() == (art / "shaders/other.vert").read_bytes()
    for changed in ("shaders/sp_solid.frag", "tracks/overworld/splatting.frag", "tracks/tutorial/scripting.as"):
        assert not (data / changed).is_symlink()
        assert (data / changed).read_bytes() != (art / changed).read_bytes()
    assert "dialog" not in (data / "tracks/overworld/scripting.as").read_text()
    assert (data / "tracks/overworld/track.xml").resolve() == art / "tracks/overworld/track.xml"
    assert (data / "supertuxkart.1.5").exists()
    assert (data / "skins/classic/stkskin.xml").read_text() == "<skin/>"  # the name that 1.5 asks for
    assert {path: path.read_bytes() for path in art.rglob("*") if path.is_file()} == before


def test_art_with_its_own_classic_skin_keeps_it(art: Path, cache: Path):
    (art / "skins/classic").mkdir()
    (art / "skins/classic/stkskin.xml").write_text("own")
    build(art, cache / "art")
    assert (cache / "art/data/skins/classic/stkskin.xml").read_text() == "own"


def test_building_again_replaces_the_overlay(art: Path, tmp_path: Path, cache: Path):
    build(art, cache / "art")
    other = write_art(tmp_path / "newer")
    (other / "stk_config.xml").write_text("newer")
    (art / "gone.xml").touch()
    build(other, cache / "art")
    assert (cache / "art/data/stk_config.xml").read_text() == "newer"
    assert not (cache / "art/data/gone.xml").exists()
    assert [path.name for path in cache.iterdir()] == ["art"]


@pytest.mark.parametrize("lacks", ["shaders/sp_pass.vert", "tracks/tutorial"])
def test_a_build_that_fails_leaves_the_old_overlay(art: Path, tmp_path: Path, cache: Path, lacks: str):
    build(art, cache / "art")
    other = write_art(tmp_path / "older")
    (other / "stk_config.xml").write_text("older")
    shutil.rmtree(other / lacks) if (other / lacks).is_dir() else (other / lacks).unlink()
    with pytest.raises((InputError, OSError)):
        build(other, cache / "art")
    assert (cache / "art/data/karts/tux/kart.xml").read_text() == "<kart/>"
    assert [path.name for path in cache.iterdir()] == ["art"]


def test_installed_wants_an_overlay_whose_art_is_there(art: Path, cache: Path):
    with pytest.raises(InputError, match="python -m supertux install-art"):
        installed()
    build(art, cache / "art")
    assert installed() == cache / "art"
    shutil.rmtree(art)
    with pytest.raises(InputError, match="python -m supertux install-art"):
        installed()


def test_an_overlay_of_an_older_version_is_not_taken(art: Path, cache: Path):
    build(art, cache / "art")
    (cache / "art" / module.MARKER).rename(cache / "art/labels-1")
    with pytest.raises(InputError, match="older version .* `python -m supertux install-art`"):
        installed()


def test_the_environment_points_to_the_art_and_away_from_the_users_home(art: Path, cache: Path, monkeypatch):
    monkeypatch.setenv("KEPT", "yes")
    build(art, cache / "art")
    variables = environment(cache / "art")
    assert (Path(variables["SUPERTUXKART_DATADIR"]) / "data/stk_config.xml").exists()
    assert Path(variables["HOME"]).is_dir() and Path(variables["HOME"]).is_relative_to(cache)
    assert variables["KEPT"] == "yes" and "SUPERTUXKART_DATADIR" not in os.environ


def test_without_the_engine_install_art_says_how_to_get_it(art: Path, monkeypatch, call, cache: Path):
    monkeypatch.setitem(sys.modules, "pystk2", None)  # as if it were not installed
    result = call((install_art,), "install-art", "--from", art)
    assert_one_line_error(result, "pystk2")
    assert f"{sys.executable} -m pip install" in result[2]
    assert not cache.exists()


def test_an_engine_that_draws_nothing_ends_in_its_last_words(art: Path, tmp_path: Path, monkeypatch, call):
    (tmp_path / "supertux/render").mkdir(parents=True)
    (tmp_path / "supertux/__init__.py").touch()
    (tmp_path / "supertux/render/__init__.py").touch()
    (tmp_path / "supertux/render/worker.py").write_text("import sys; sys.exit('some noise\\nno device found')")
    monkeypatch.chdir(tmp_path)  # the child imports from there
    monkeypatch.setattr(module, "require_engine", lambda: None)
    result = call((install_art,), "install-art", "--from", art)
    assert_one_line_error(result, "no frame could be drawn (no device found)")
