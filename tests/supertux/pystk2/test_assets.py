"""The search for the game assets, and the overlay that makes them fit the engine."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from homework.utils.errors import InputError
from supertux.render.engines import assets as shared
from supertux.render.engines.assets import find_assets
from supertux.render.engines.pystk2 import assets as module
from supertux.render.engines.pystk2.assets import build_overlay, environment, find_missing, install_assets
from tests.conftest import assert_one_line_error
from tests.supertux.pystk2.test_shaders import CONFIG, write_assets

find_missing_software = module.find_missing_software


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> Path:
    """Return a cache of the test's own; no assets are in the usual places, and no software is missing."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(module, "OVERLAY", cache / "art")
    monkeypatch.setattr(shared, "SEARCH_PATH", (tmp_path / "usual/data", tmp_path / "other/data"))
    monkeypatch.setattr(module, "find_missing_software", lambda modules, needs_assets: [])
    return cache


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    return write_assets(tmp_path / "stk")


def test_usual_places_are_searched_in_order(assets: Path, tmp_path: Path):
    with pytest.raises(InputError, match="usual places.*apt install supertuxkart-data.* --from PATH"):
        find_assets(None)
    (tmp_path / "usual/data").mkdir(parents=True)  # a package's folder without the assets
    shutil.copytree(assets, tmp_path / "other/data")
    assert find_assets(None) == tmp_path / "other/data"
    shutil.copytree(assets, tmp_path / "usual/data", dirs_exist_ok=True)
    assert find_assets(None) == tmp_path / "usual/data"


def test_a_folder_may_be_or_hold_the_assets(assets: Path, tmp_path: Path):
    assert find_assets(assets) == assets
    (tmp_path / "game").mkdir()
    assets.rename(tmp_path / "game/data")
    assert find_assets(tmp_path / "game") == tmp_path / "game/data"
    (tmp_path / "above").mkdir()
    (tmp_path / "game").rename(tmp_path / "above/stk-1.4")
    assert find_assets(tmp_path / "above") == tmp_path / "above/stk-1.4/data"


def test_links_to_a_relative_folder_work_anywhere(assets: Path, tmp_path: Path, monkeypatch, cache: Path):
    monkeypatch.chdir(tmp_path)
    build_overlay(find_assets(Path("stk")), cache / "art")
    monkeypatch.chdir("/")
    assert (cache / "art/data/karts/tux/kart.xml").read_text() == "<kart/>"
    assert (cache / "art/data/stk_config.xml").read_text() == CONFIG.replace("80", "75").replace("65", "75").replace(
        "50", "75"
    )
    assert (cache / "art/data/skins/classic/stkskin.xml").exists()


def test_a_folder_without_assets_is_an_error(assets: Path, tmp_path: Path):
    shutil.rmtree(assets / "karts")
    for path in (assets, tmp_path / "missing"):
        with pytest.raises(InputError, match="no game assets there .*karts") as error:
            find_assets(path)
        assert str(error.value).startswith(f"{path}: ")


def test_the_overlay_is_links_and_a_few_files_of_its_own(assets: Path, cache: Path):
    before = {path: path.read_bytes() for path in assets.rglob("*") if path.is_file()}
    build_overlay(assets, cache / "art")
    data = cache / "art/data"
    assert (data / "karts").is_symlink() and (data / "tracks/abyss").resolve() == assets / "tracks/abyss"
    assert (data / "shaders/other.vert").read_bytes() == (assets / "shaders/other.vert").read_bytes()
    for changed in ("shaders/sp_solid.frag", "tracks/overworld/splatting.frag", "tracks/tutorial/scripting.as"):
        assert not (data / changed).is_symlink()
        assert (data / changed).read_bytes() != (assets / changed).read_bytes()
    assert "dialog" not in (data / "tracks/overworld/scripting.as").read_text()
    assert (data / "tracks/overworld/track.xml").resolve() == assets / "tracks/overworld/track.xml"
    assert (data / "supertuxkart.1.5").exists()
    assert (data / "skins/classic/stkskin.xml").read_text() == "<skin/>"  # the name that 1.5 reads
    assert {path: path.read_bytes() for path in assets.rglob("*") if path.is_file()} == before


def test_assets_with_a_classic_skin_keep_it(assets: Path, cache: Path):
    (assets / "skins/classic").mkdir()
    (assets / "skins/classic/stkskin.xml").write_text("own")
    build_overlay(assets, cache / "art")
    assert (cache / "art/data/skins/classic/stkskin.xml").read_text() == "own"


def test_building_again_replaces_the_overlay(assets: Path, tmp_path: Path, cache: Path):
    build_overlay(assets, cache / "art")
    other = write_assets(tmp_path / "newer")
    (other / "stk_config.xml").write_text("newer")
    (assets / "gone.xml").touch()
    build_overlay(other, cache / "art")
    assert (cache / "art/data/stk_config.xml").read_text() == "newer"
    assert not (cache / "art/data/gone.xml").exists()
    assert [path.name for path in cache.rglob("*") if path.parent in (cache, cache / "art")] == ["art", "data"]


@pytest.mark.parametrize("lacks", ["shaders/sp_pass.vert", "tracks/tutorial"])
def test_a_failed_build_keeps_the_old_overlay(assets: Path, tmp_path: Path, cache: Path, lacks: str):
    build_overlay(assets, cache / "art")
    other = write_assets(tmp_path / "older")
    (other / "stk_config.xml").write_text("older")
    shutil.rmtree(other / lacks) if (other / lacks).is_dir() else (other / lacks).unlink()
    with pytest.raises((InputError, OSError)):
        build_overlay(other, cache / "art")
    assert (cache / "art/data/karts/tux/kart.xml").read_text() == "<kart/>"
    assert [path.name for path in cache.rglob("*") if path.parent in (cache, cache / "art")] == ["art", "data"]


def test_assets_are_missing_without_an_overlay_or_if_they_are_deleted(assets: Path, cache: Path):
    missing = [("the game assets are not installed", "`python -m supertux install-assets`")]
    assert find_missing() == missing
    build_overlay(assets, cache / "art")
    assert find_missing() == []
    shutil.rmtree(assets)
    assert find_missing() == missing


def test_an_overlay_of_an_older_version_has_to_be_replaced(assets: Path, cache: Path):
    build_overlay(assets, cache / "art")
    (cache / "art" / module.MARKER).rename(cache / "art/data/labels-1")
    [(problem, remedy)] = find_missing()
    assert "older version" in problem and remedy == "`python -m supertux install-assets`"


def test_the_environment_has_the_assets_and_not_the_users_home(assets: Path, cache: Path, monkeypatch):
    monkeypatch.setenv("KEPT", "yes")
    build_overlay(assets, cache / "art")
    variables = environment(cache / "art")
    assert (Path(variables["SUPERTUXKART_DATADIR"]) / "data/stk_config.xml").exists()
    assert Path(variables["HOME"]).is_dir() and Path(variables["HOME"]).is_relative_to(cache)
    assert variables["KEPT"] == "yes" and "SUPERTUXKART_DATADIR" not in os.environ


def test_without_the_engine_nothing_is_installed(assets: Path, monkeypatch, call, cache: Path):
    monkeypatch.setattr(module, "find_missing_software", find_missing_software)
    monkeypatch.setitem(sys.modules, "pystk2", None)  # as if it were not installed
    result = call((install_assets,), "install-assets", "--from", assets)
    assert_one_line_error(result, "pystk2")
    assert f"{sys.executable} -m pip install" in result[2]
    assert not cache.exists()


def test_an_engine_that_draws_nothing_is_an_error_with_its_last_line(assets: Path, tmp_path: Path, monkeypatch, call):
    (tmp_path / "supertux/render").mkdir(parents=True)
    (tmp_path / "supertux/__init__.py").touch()
    (tmp_path / "supertux/render/__init__.py").touch()
    (tmp_path / "supertux/render/worker.py").write_text("import sys; sys.exit('some noise\\nno device found')")
    monkeypatch.chdir(tmp_path)  # the process imports from there
    result = call((install_assets,), "install-assets", "--from", assets)
    assert_one_line_error(result, "cannot draw a frame (no device found)")
