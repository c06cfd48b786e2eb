"""The engine of the course's frames: its art's overlay, on stand-ins for the art, and how it is installed."""

import shutil
import sys
from pathlib import Path

import pytest

from homework.utils.errors import InputError
from supertux.render.engines.pystk1 import assets as module
from supertux.render.engines.pystk1.assets import build, environment, install_course_engine, installed
from supertux.render.engines.pystk2 import assets as art_module
from supertux.render.engines.pystk2.shaders import FRAGMENT_SHADERS, VERTEX_SHADERS
from supertux.render.renderer import render
from tests.conftest import assert_one_line_error
from tests.supertux.pystk2.test_shaders import body_of_main, write_art


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setattr(art_module, "CACHE", cache)
    return cache / "course"


@pytest.fixture
def art(tmp_path: Path) -> Path:
    """Release 1.2's folder as Debian packs it: the letters of other languages are links into other packages."""
    folder = write_art(tmp_path / "stk")
    (folder / "ttf").mkdir()
    (folder / "ttf/SigmarOne.otf").write_text("letters")
    (folder / "ttf/Cantarell-Regular.otf").symlink_to("../../fonts/nowhere.otf")
    return folder


def test_each_pixel_is_labelled_with_the_number_of_its_object(art: Path, cache: Path):
    build(art, cache)
    for name in VERTEX_SHADERS:
        text = (cache / f"data/shaders/{name}.vert").read_text()
        assert text.count("layout(location = 13) in uint i_label;") == text.count("flat out uint label;") == 1
        assert body_of_main(text).rstrip().endswith("label = i_label;")
    for name in FRAGMENT_SHADERS:
        text = (cache / f"data/shaders/{name}.frag").read_text()
        assert text.count("layout(location = 3) out uint o_label;") == text.count("flat in uint label;") == 1
        assert body_of_main(text).rstrip().endswith("o_label = label;")


def test_shaders_that_the_art_lacks_are_there(art: Path, cache: Path):
    build(art, cache)
    for name in ("track_seg.frag", "track.vert", "track.geom", "track_stencil.frag"):
        assert not (art / "shaders" / name).exists()
        body_of_main((cache / "data/shaders" / name).read_text())


def test_the_rest_is_links_and_letters_that_can_be_opened(art: Path, cache: Path):
    before = {path: path.read_bytes() for path in art.rglob("*") if path.is_file()}
    build(art, cache)
    data = cache / "data"
    assert (data / "karts").is_symlink() and (data / "tracks").resolve() == art / "tracks"
    assert (data / "shaders/other.vert").resolve() == art / "shaders/other.vert"
    assert (data / "ttf/Cantarell-Regular.otf").read_text() == "letters"
    assert (data / "supertuxkart.git").exists()  # what this engine looks for
    assert {path: path.read_bytes() for path in art.rglob("*") if path.is_file()} == before


def test_art_of_another_release_leaves_the_old_overlay(art: Path, tmp_path: Path, cache: Path):
    build(art, cache)
    other = write_art(tmp_path / "other")
    (other / "shaders/sp_solid.frag").write_text("no such function")
    with pytest.raises(InputError, match="not the shader of SuperTuxKart 1.2"):
        build(other, cache)
    assert (cache / "data/karts/tux/kart.xml").resolve() == art / "karts/tux/kart.xml"
    assert [path.name for path in cache.iterdir()] == ["data"]


def test_what_is_not_art_is_named(tmp_path: Path, call, cache: Path):
    result = call((install_course_engine,), "install-course-engine", "--assets", tmp_path / "nowhere")
    assert_one_line_error(result, str(tmp_path / "nowhere"))
    assert not cache.exists()


@pytest.mark.parametrize(
    ("python", "words"), [("no-such-python", "does not run"), ("false", "the engine can't be installed")]
)
def test_without_the_right_python_it_says_which_one_to_name(art: Path, call, python: str, words: str):
    result = call((install_course_engine,), "install-course-engine", "--assets", art, "--python", python)
    assert_one_line_error(result, f"{python}: {words}")
    assert "--python" in result[2]


def test_without_the_engine_nothing_is_drawn(art: Path, tmp_path: Path, call, cache: Path):
    result = call((render,), "render", "--out", tmp_path / "mine", "--preset", "course")
    assert_one_line_error(result, "python -m supertux install-course-engine")
    assert not (tmp_path / "mine").exists()
    build(art, cache)
    (cache / "venv/bin").mkdir(parents=True)
    module.interpreter().symlink_to(sys.executable)
    assert installed() == cache and "-GL_ARB_compute_shader" in environment()["MESA_EXTENSION_OVERRIDE"]
    shutil.rmtree(art)
    with pytest.raises(InputError, match="install-course-engine"):
        installed()
