"""Rendering many races and resuming, with a stand-in for the process that draws; slow tests use the game itself."""

import _thread
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from homework.labels.frame_info import read_frame_info
from homework.labels.rows import info_files
from homework.labels.scene import VIEW_SIZE, build_scene
from homework.utils.io import read_json
from supertux.render import renderer as module
from supertux.render.engines import PYSTK2
from supertux.render.engines import assets as shared_assets
from supertux.render.engines.pystk2 import assets
from supertux.render.engines.pystk2.labels import rotation_matrix
from supertux.render.planner import KARTS, TRACKS, race_plans
from supertux.render.renderer import render
from tests.conftest import assert_one_line_error
from tests.supertux.installed import skip_unless_installed

ROOT = Path(__file__).parents[2]

# In place of `supertux.render.worker`: writes the same files, and fails as the file FAILURES says (race number -> how).
FAKE_WORKER = """
import json, os, signal, sys, time
from pathlib import Path

folder, plan = Path(sys.argv[1]), json.loads(sys.stdin.read())
with open("LOG", "a") as log:
    log.write(f"{plan['number']}\\n")
failures = json.loads(Path("FAILURES").read_text()) if Path("FAILURES").exists() else {}
failure = failures.get(str(plan["number"]))
frames = plan["frames"] - (3 if failure == "drop" else 0)
for frame in range(plan["first_frame"], plan["first_frame"] + (2 if failure else frames)):
    text = json.dumps({"track": plan["track"], "karts": plan["karts"], "detections": [[]], "seed": plan["seed"]})
    (folder / f"{frame:05x}_info.json").write_text(text)
if failure == "die":
    os.kill(os.getpid(), signal.SIGSEGV)
if failure == "fail":
    sys.exit("noise\\nValueError: no such kart")
if failure == "hang":
    time.sleep(60)
record = {"frames": frames, "missing": plan["frames"] - frames}
(folder / f".races/{plan['number']:05d}.json").write_text(json.dumps(record))
"""

FRAMES_PER_RACE = PYSTK2.frames_per_race
# frames of three whole races and a bit of a fourth; of a fifth; of one and a bit
COUNT, MORE, TWO_RACES = 3 * FRAMES_PER_RACE + 4, 4 * FRAMES_PER_RACE + 22, FRAMES_PER_RACE + 8


class Game:
    """The folder from which the stand-in is imported."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "supertux/render").mkdir(parents=True)
        (folder / "supertux/__init__.py").touch()
        (folder / "supertux/render/__init__.py").touch()
        (folder / "supertux/render/worker.py").write_text(FAKE_WORKER)

    def fail(self, failures: dict[int, str]) -> None:
        """Let races die, fail, hang, or drop frames."""
        (self.folder / "FAILURES").write_text(json.dumps(failures))

    def drawn(self) -> list[int]:
        """Return the races that were started since the last call."""
        log = self.folder / "LOG"
        numbers = sorted(map(int, log.read_text().split())) if log.exists() else []
        log.unlink(missing_ok=True)
        return numbers


@pytest.fixture
def game(tmp_path: Path, monkeypatch) -> Game:
    game = Game(tmp_path / "game")
    monkeypatch.chdir(game.folder)  # `python -m` looks there first
    monkeypatch.setattr(assets, "find_missing_software", lambda modules, needs_assets: [])
    monkeypatch.setattr(assets, "OVERLAY", tmp_path / "cache/art")
    (tmp_path / "cache/art/data/karts").mkdir(parents=True)
    (tmp_path / "cache/art" / assets.MARKER).touch()
    return game


@pytest.fixture
def draw(call, game: Game, tmp_path: Path):
    """Return `draw(flag=value)`, which runs the command into `tmp_path / "mine"`."""

    def draw(**flags):
        flags = {"output": tmp_path / "mine", "frames": COUNT, "preset": "ld", "workers": 2} | flags
        arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        return call((render,), "render", *arguments)

    return draw


def frames(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*_info.json")}


def test_a_second_run_draws_nothing(draw, game: Game, tmp_path: Path):
    status, out, _ = draw()
    assert status == 0 and "4 races, 0 of them drawn already" in out and f"{COUNT} frames; 0 races lost" in out
    assert game.drawn() == [0, 1, 2, 3]
    assert sorted(frames(tmp_path / "mine")) == [f"{number:05x}_info.json" for number in range(COUNT)]
    before = frames(tmp_path / "mine")
    status, out, _ = draw()
    assert status == 0 and "4 of them drawn already" in out and f"{COUNT} frames; 0 races lost" in out
    assert game.drawn() == [] and frames(tmp_path / "mine") == before


def test_more_frames_draw_the_last_race_again_and_the_new_ones(draw, game: Game, tmp_path: Path):
    draw()
    before = frames(tmp_path / "mine")
    game.drawn()
    assert f"{MORE} frames" in draw(frames=MORE)[1]
    assert game.drawn() == [3, 4]
    after = frames(tmp_path / "mine")
    assert len(after) == MORE and before.items() <= after.items()
    draw(frames=40)  # fewer are there already
    assert game.drawn() == [] and frames(tmp_path / "mine") == after


@pytest.mark.parametrize(
    ("failure", "words"), [("die", "the engine died of signal 11"), ("fail", "ValueError: no such kart")]
)
def test_a_lost_race_is_reported_and_retried_by_the_next_run(
    draw, game: Game, tmp_path: Path, failure: str, words: str
):
    game.fail({1: failure})
    status, out, _ = draw(workers=1)
    track = list(race_plans(1, COUNT, TRACKS, KARTS, "ld"))[1].track
    assert status == 0 and f"race 1 on {track} is lost: {words}" in out
    assert f"{COUNT - FRAMES_PER_RACE + 2} frames; 1 races lost" in out and "run the same command again" in out
    assert game.drawn() == [0, 1, 2, 3]  # the others were drawn
    game.fail({})
    status, out, _ = draw()
    assert "3 of them drawn already" in out and f"{COUNT} frames; 0 races lost" in out
    assert game.drawn() == [1]


def test_a_race_that_hangs_is_killed(draw, game: Game, monkeypatch):
    monkeypatch.setattr(module, "RACE_TIMEOUT_S", 1)
    game.fail({0: "hang"})
    begin = time.monotonic()
    assert "is lost: it took more than 1 s" in draw(frames=20)[1]
    assert time.monotonic() - begin < 30


def test_an_interrupted_run_ends_at_once(draw, game: Game):
    """Even if the races' processes are not interrupted with it, as they are by Ctrl-C at a terminal."""
    game.fail({0: "hang", 1: "hang"})
    begin = time.monotonic()
    threading.Timer(2, _thread.interrupt_main).start()
    assert draw()[0] == 130 and time.monotonic() - begin < 30
    assert game.drawn() == [0, 1]


def test_unreadable_frames_are_counted_and_not_retried(draw, game: Game):
    game.fail({2: "drop"})
    assert "0 races lost, 3 frames left out" in draw()[1]
    game.drawn()
    draw()
    assert game.drawn() == []


@pytest.mark.parametrize(
    "other",
    [{"seed": 2}, {"preset": "sd"}, {"tracks": "abyss"}, {"karts": "tux,gnu"}, {"kart_count_mix": "60,40"}],
    ids=lambda other: next(iter(other)),
)
def test_a_folder_keeps_its_settings(draw, game: Game, tmp_path: Path, other: dict):
    draw()
    before = frames(tmp_path / "mine")
    game.drawn()
    result = draw(**other)
    assert_one_line_error(result, "render.json")
    assert f"drawn with {next(iter(other)).removeprefix('kart_count_')} " in result[2]
    assert game.drawn() == [] and frames(tmp_path / "mine") == before
    assert draw(frames=101)[0] == 0  # and can still be resumed


def test_a_folder_with_frames_of_another_source_is_an_error(draw, game: Game, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/00a00_info.json").write_text("{}")
    assert_one_line_error(draw(), f"{tmp_path / 'mine'}: it holds frames of another source")
    assert game.drawn() == [] and [path.name for path in (tmp_path / "mine").iterdir()] == ["00a00_info.json"]


@pytest.mark.parametrize("mix", ["a lot", "60,,8", "60;26", "-1,2", "0,0", "nan,1", "inf,1", ","])
def test_an_invalid_mix_is_an_error(draw, game: Game, tmp_path: Path, mix: str):
    assert_one_line_error(draw(kart_count_mix=mix), f"--kart-count-mix: `{mix}` is not a list of shares")
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"tracks": "abyss, mars"}, "--tracks: unknown name mars"),
        ({"karts": "tux,tux"}, "--karts"),
        ({"preset": "uhd"}, "--preset: unknown name uhd"),
        ({"frames": 2_000_000}, "--frames"),
    ],
)
def test_an_invalid_flag_is_an_error_before_anything_is_written(draw, tmp_path: Path, flags: dict, words: str):
    assert_one_line_error(draw(**flags), words)
    status, _, err = draw(workers=-1)
    assert status == 2 and err.startswith("error: --workers: ")
    assert not (tmp_path / "mine").exists()


def test_tracks_karts_and_mix_reach_the_races(draw, tmp_path: Path):
    assert draw(tracks="abyss, hacienda", karts="tux,gnu,xue", kart_count_mix="60, 40")[0] == 0
    infos = [json.loads(content) for content in frames(tmp_path / "mine").values()]
    assert {info["track"] for info in infos} == {"abyss", "hacienda"}
    assert {kart for info in infos for kart in info["karts"]} == {"tux", "gnu", "xue"}
    assert read_json(tmp_path / "mine/render.json")["mix"] == [60, 40]


def test_all_that_is_missing_is_one_error_before_anything_is_drawn(call, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(assets, "OVERLAY", tmp_path / "cache/art")
    monkeypatch.setattr(shared_assets, "SEARCH_PATH", ())
    monkeypatch.setattr(shared_assets, "SYSTEM_LIBRARIES", {"libnone.so.0": "libnone0"})
    monkeypatch.setattr(shared_assets, "has_driver", lambda: False)
    for name in assets.PYTHON_MODULES:
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    result = call((render,), "render", "--output", tmp_path / "mine")
    assert_one_line_error(result, "--preset hd: cannot draw: ")
    remedies = [
        "`apt install supertuxkart-data libnone0 libgl1-mesa-dri`",
        f"`{sys.executable} -m pip install -r supertux/requirements.txt`",
        "`python -m supertux install-assets`",
    ]
    assert result[2].endswith(f"; run {', then '.join(remedies)}\n")  # in the order in which they work
    assert "pystk2 does not load" in result[2] and "elftools does not load" in result[2]
    assert not (tmp_path / "mine").exists()


def test_missing_assets_are_an_error(draw, game: Game, tmp_path: Path):
    shutil.rmtree(tmp_path / "cache/art")
    assert_one_line_error(draw(), "the game assets are not installed; run `python -m supertux install-assets`")
    assert game.drawn() == [] and not (tmp_path / "mine").exists()


# The game itself.

FLAGS = (
    "--frames",
    str(TWO_RACES),
    "--preset",
    "sd",
    "--tracks",
    "xr591,lighthouse",
    "--karts",
    "tux,gnu,nolok,kiki,xue",
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """Return the environment of commands with the assets in a cache of their own."""
    skip_unless_installed("sd")
    folder = (assets.OVERLAY / "data/karts").resolve().parent
    environment = dict(os.environ, XDG_CACHE_HOME=str(tmp_path_factory.mktemp("cache")))
    command = [sys.executable, "-m", "supertux", "install-assets", "--from", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return environment


def command(out: Path, workers: int) -> list[str]:
    return [sys.executable, "-m", "supertux", "render", "--output", str(out), *FLAGS, "--workers", str(workers)]


@pytest.fixture(scope="module")
def undisturbed(environment, tmp_path_factory) -> Path:
    """Draw two races, one after another."""
    out = tmp_path_factory.mktemp("frames") / "one"
    done = subprocess.run(command(out, 1), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and f"{TWO_RACES} frames; 0 races lost, 0 frames left out" in done.stdout, done.stderr
    return out


@pytest.mark.slow
def test_frames_have_the_courses_format(undisturbed: Path):
    paths, seen = info_files(undisturbed), []
    assert len(paths) == TWO_RACES
    for path in paths:
        info = read_frame_info(path)
        for view, _ in enumerate(info["detections"]):
            image = path.with_name(path.name.replace("info.json", f"{view:02d}_im.jpg"))
            with Image.open(image) as opened:
                assert (opened.size, opened.mode, opened.format) == (VIEW_SIZE, "RGB", "JPEG")
            seen.append((view, build_scene(info, view).ego))
    assert len(list(undisturbed.glob("*_im.jpg"))) == len(seen)
    assert {read_frame_info(path)["track"] for path in paths} == {"xr591", "lighthouse"}
    # the camera target of view i is kart i, which is in the centre of nearly every view
    assert sum(ego is not None and ego.track_id == view for view, ego in seen) > 0.9 * len(seen)


@pytest.mark.slow
def test_cameras_look_at_static_karts_from_the_front_and_at_driven_ones_from_behind(undisturbed: Path):
    is_static = {record["race"]: record["placed"] for record in map(read_json, undisturbed.glob(".races/*.json"))}
    ahead = {True: [], False: []}  # metres from the camera target to others in its view, along its front
    for path in info_files(undisturbed):
        info = read_json(path)
        for view, _ in enumerate(info["detections"]):
            front = rotation_matrix(info["rotation"][view])[:, 2]
            for kart in build_scene(info, view).karts:
                if kart.track_id != view:
                    to_other = np.subtract(info["location"][kart.track_id], info["location"][view])
                    ahead[is_static[info["race"]]].append(to_other @ front)
    assert set(is_static.values()) == {True, False} and min(map(len, ahead.values())) > 3
    # the camera is a few metres off: a kart beside its target may be in view either way
    assert max(ahead[True]) < 5 and min(ahead[False]) > -5


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(undisturbed: Path, environment, tmp_path: Path):
    subprocess.run(command(tmp_path / "two", 2), cwd=ROOT, env=environment, check=True, capture_output=True)
    assert frames(tmp_path / "two") == frames(undisturbed)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_frames(undisturbed: Path, environment, tmp_path: Path):
    out = tmp_path / "killed"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    run = subprocess.Popen(command(out, 1), cwd=ROOT, env=environment, **quiet)
    try:
        while len(frames(out)) < 5:
            assert run.poll() is None
            time.sleep(0.05)
        run.kill()  # the race's process survives for a while, beside the next run's
        run.wait()
        assert len(frames(out)) < TWO_RACES
        done = subprocess.run(command(out, 1), cwd=ROOT, env=environment, capture_output=True, text=True)
        assert f"{TWO_RACES} frames; 0 races lost" in done.stdout, done.stderr
        assert frames(out) == frames(undisturbed)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
