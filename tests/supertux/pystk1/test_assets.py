"""The legacy engine: its assets' overlay, on stand-ins for the assets, and its installation."""

import shutil
import sys
from pathlib import Path

import pytest

from homework.utils.errors import InputError
from supertux.render.engines.pystk1 import assets as module
from supertux.render.engines.pystk1.assets import build_overlay, environment, find_missing, install_legacy_engine
from supertux.render.engines.pystk2.shaders import FRAGMENT_SHADERS, VERTEX_SHADERS
from supertux.render.renderer import render
from tests.conftest import assert_one_line_error
from tests.supertux.pystk2.test_shaders import body_of_main, write_assets


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr(module, "INSTALL_DIR", tmp_path / "cache/course")
    monkeypatch.setattr(module, "INTERPRETER", module.INSTALL_DIR / "venv/bin/python")
    monkeypatch.setattr(module, "find_missing_software", lambda: [])
    return module.INSTALL_DIR


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    """Return release 1.2's folder as Debian packs it: fonts of other languages are links into other packages."""
    folder = write_assets(tmp_path / "stk")
    (folder / "ttf").mkdir()
    (folder / "ttf/SigmarOne.otf").write_text("letters")
    (folder / "ttf/Cantarell-Regular.otf").symlink_to("../../fonts/nowhere.otf")
    return folder


def test_each_pixel_is_labelled_with_the_number_of_its_object(assets: Path, cache: Path):
    build_overlay(assets, cache)
    for name in VERTEX_SHADERS:
        text = (cache / f"data/shaders/{name}.vert").read_text()
        assert text.count("layout(location = 13) in uint i_label;") == text.count("flat out uint label;") == 1
        assert body_of_main(text).rstrip().endswith("label = i_label;")
    for name in FRAGMENT_SHADERS:
        text = (cache / f"data/shaders/{name}.frag").read_text()
        assert text.count("layout(location = 3) out uint o_label;") == text.count("flat in uint label;") == 1
        assert body_of_main(text).rstrip().endswith("o_label = label;")


def test_shaders_that_the_assets_lack_are_added(assets: Path, cache: Path):
    build_overlay(assets, cache)
    for name in ("track_seg.frag", "track.vert", "track.geom", "track_stencil.frag"):
        assert not (assets / "shaders" / name).exists()
        body_of_main((cache / "data/shaders" / name).read_text())


def test_the_rest_is_links_and_fonts_that_exist(assets: Path, cache: Path):
    before = {path: path.read_bytes() for path in assets.rglob("*") if path.is_file()}
    build_overlay(assets, cache)
    data = cache / "data"
    assert (data / "karts").is_symlink() and (data / "tracks").resolve() == assets / "tracks"
    assert (data / "shaders/other.vert").resolve() == assets / "shaders/other.vert"
    assert (data / "ttf/Cantarell-Regular.otf").read_text() == "letters"
    assert (data / "supertuxkart.git").exists()  # what this engine reads
    assert {path: path.read_bytes() for path in assets.rglob("*") if path.is_file()} == before


def test_assets_of_another_release_keep_the_old_overlay(assets: Path, tmp_path: Path, cache: Path):
    build_overlay(assets, cache)
    other = write_assets(tmp_path / "other")
    (other / "shaders/sp_solid.frag").write_text("no such function")
    with pytest.raises(InputError, match="not the shader of SuperTuxKart 1.2"):
        build_overlay(other, cache)
    assert (cache / "data/karts/tux/kart.xml").resolve() == assets / "karts/tux/kart.xml"
    assert [path.name for path in cache.iterdir()] == ["data"]


def test_a_folder_without_assets_is_an_error(tmp_path: Path, call, cache: Path):
    result = call((install_legacy_engine,), "install-legacy-engine", "--assets", tmp_path / "nowhere")
    assert_one_line_error(result, str(tmp_path / "nowhere"))
    assert not cache.exists()


@pytest.mark.parametrize("python", ["no-such-python", "false"])
def test_another_python_is_an_error_with_a_remedy(assets: Path, call, python: str):
    result = call((install_legacy_engine,), "install-legacy-engine", "--assets", assets, "--python", python)
    assert_one_line_error(result, f"{python}: cannot install the engine")
    assert "--python" in result[2]


def test_without_the_engine_nothing_is_drawn(assets: Path, tmp_path: Path, call, cache: Path):
    result = call((render,), "render", "--output", tmp_path / "mine", "--preset", "course")
    assert_one_line_error(result, "python -m supertux install-legacy-engine")
    assert not (tmp_path / "mine").exists()
    build_overlay(assets, cache)
    (cache / "venv/bin").mkdir(parents=True)
    module.INTERPRETER.symlink_to(sys.executable)
    assert find_missing() == [] and "-GL_ARB_compute_shader" in environment()["MESA_EXTENSION_OVERRIDE"]
    shutil.rmtree(assets)
    assert "install-legacy-engine" in find_missing()[0].remedy
