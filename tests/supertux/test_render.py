"""Runs of many races: taken up again, with a stand-in for the process that draws; and, slow, the game itself."""

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
from homework.utils.errors import InputError
from homework.utils.io import read_json
from supertux.render import renderer as module
from supertux.render.engines.pystk2 import assets as art
from supertux.render.engines.pystk2.labels import rotation_matrix
from supertux.render.planner import FRAMES_PER_RACE, KARTS, TRACKS, race_plans
from supertux.render.renderer import render
from tests.conftest import assert_one_line_error

ROOT = Path(__file__).parents[2]

# In place of `supertux.render.worker`: what it writes, and on demand (a file DIES or HANGS with the races' numbers) how it ends.
CHILD = """
import json, os, signal, sys, time
from pathlib import Path

folder, plan = Path(sys.argv[1]), json.loads(sys.stdin.read())
with open("LOG", "a") as log:
    log.write(f"{plan['number']}\\n")
fates = json.loads(Path("FATES").read_text()) if Path("FATES").exists() else {}
fate = fates.get(str(plan["number"]))
frames = plan["frames"] - (3 if fate == "miss" else 0)
for frame in range(plan["first_frame"], plan["first_frame"] + (2 if fate else frames)):
    text = json.dumps({"track": plan["track"], "karts": plan["karts"], "detections": [[]], "seed": plan["seed"]})
    (folder / f"{frame:05x}_info.json").write_text(text)
if fate == "die":
    os.kill(os.getpid(), signal.SIGSEGV)
if fate == "fail":
    sys.exit("noise\\nValueError: no such kart")
if fate == "hang":
    time.sleep(60)
record = {"frames": frames, "missing": plan["frames"] - frames}
(folder / f".races/{plan['number']:05d}.json").write_text(json.dumps(record))
"""

# frames of three whole races and a bit of a fourth; of a fifth; of one and a bit
COUNT, MORE, TWO_RACES = 3 * FRAMES_PER_RACE + 4, 4 * FRAMES_PER_RACE + 22, FRAMES_PER_RACE + 8


class Game:
    """The folder from which the stand-in is imported."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "supertux/render").mkdir(parents=True)
        (folder / "supertux/__init__.py").touch()
        (folder / "supertux/render/__init__.py").touch()
        (folder / "supertux/render/worker.py").write_text(CHILD)

    def fates(self, **fates: str) -> None:
        (self.folder / "FATES").write_text(json.dumps({name[1:]: fate for name, fate in fates.items()}))

    def drawn(self) -> list[int]:
        """The races that were begun since the last call."""
        log = self.folder / "LOG"
        numbers = sorted(map(int, log.read_text().split())) if log.exists() else []
        log.unlink(missing_ok=True)
        return numbers


@pytest.fixture
def game(tmp_path: Path, monkeypatch) -> Game:
    game = Game(tmp_path / "game")
    monkeypatch.chdir(game.folder)  # `python -m` looks there first
    monkeypatch.setattr(art, "require_engine", lambda: None)
    monkeypatch.setattr(art, "OVERLAY", tmp_path / "cache/art")
    (tmp_path / "cache/art/data/karts").mkdir(parents=True)
    (tmp_path / "cache/art" / art.MARKER).touch()
    return game


@pytest.fixture
def draw(call, game: Game, tmp_path: Path):
    """`draw(flag=value)` runs the command into `tmp_path / "mine"`."""

    def draw(**flags):
        flags = {"out": tmp_path / "mine", "frames": COUNT, "preset": "ld", "workers": 2} | flags
        arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        return call((render,), "render", *arguments)

    return draw


def frames(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*_info.json")}


def test_a_run_draws_all_races_and_a_second_run_none(draw, game: Game, tmp_path: Path):
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
    ("fate", "words"), [("die", "the engine died of signal 11"), ("fail", "ValueError: no such kart")]
)
def test_a_race_that_dies_is_told_and_tried_again_next_time(draw, game: Game, tmp_path: Path, fate: str, words: str):
    game.fates(_1=fate)
    status, out, _ = draw(workers=1)
    track = list(race_plans(1, COUNT, TRACKS, KARTS, "ld"))[1].track
    assert status == 0 and f"race 1 on {track} is lost: {words}" in out
    assert f"{COUNT - FRAMES_PER_RACE + 2} frames; 1 races lost" in out and "run the same command again" in out
    assert game.drawn() == [0, 1, 2, 3]  # the others went on
    game.fates()
    status, out, _ = draw()
    assert "3 of them drawn already" in out and f"{COUNT} frames; 0 races lost" in out
    assert game.drawn() == [1]


def test_a_race_that_hangs_is_given_up(draw, game: Game, monkeypatch):
    monkeypatch.setattr(module, "RACE_LIMIT", 1)
    game.fates(_0="hang")
    begin = time.monotonic()
    assert "is lost: it took more than 1 s" in draw(frames=20)[1]
    assert time.monotonic() - begin < 30


def test_interrupted_it_waits_for_no_race(draw, game: Game):
    """Even where the races' processes are not interrupted with it, as they are by Ctrl-C at a terminal."""
    game.fates(_0="hang", _1="hang")
    begin = time.monotonic()
    threading.Timer(2, _thread.interrupt_main).start()
    assert draw()[0] == 130 and time.monotonic() - begin < 30
    assert game.drawn() == [0, 1]


def test_frames_that_cannot_be_labelled_are_told_and_not_tried_again(draw, game: Game):
    game.fates(_2="miss")
    assert "0 races lost, 3 frames left out" in draw()[1]
    game.drawn()
    draw()
    assert game.drawn() == []


@pytest.mark.parametrize(
    "other",
    [{"seed": 2}, {"preset": "sd"}, {"tracks": "abyss"}, {"karts": "tux,gnu"}, {"mix": "60,40"}],
    ids=lambda other: next(iter(other)),
)
def test_a_folder_keeps_its_settings(draw, game: Game, tmp_path: Path, other: dict):
    draw()
    before = frames(tmp_path / "mine")
    game.drawn()
    result = draw(**other)
    assert_one_line_error(result, "render.json")
    assert f"drawn with {next(iter(other))} " in result[2]
    assert game.drawn() == [] and frames(tmp_path / "mine") == before
    assert draw(frames=101)[0] == 0  # and can still be gone on with


def test_a_folder_with_frames_of_another_source_is_left_alone(draw, game: Game, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/00a00_info.json").write_text("{}")
    assert_one_line_error(draw(), f"{tmp_path / 'mine'}: it holds frames of another source")
    assert game.drawn() == [] and [path.name for path in (tmp_path / "mine").iterdir()] == ["00a00_info.json"]


@pytest.mark.parametrize("mix", ["a lot", "60,,8", "60;26", "-1,2", "0,0", "nan,1", "inf,1", ","])
def test_a_mix_that_is_none(draw, game: Game, tmp_path: Path, mix: str):
    assert_one_line_error(draw(mix=mix), f"--mix: `{mix}` is not a list of shares")
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
def test_a_flag_that_cannot_be_is_named_before_anything_is_written(draw, tmp_path: Path, flags: dict, words: str):
    assert_one_line_error(draw(**flags), words)
    assert not (tmp_path / "mine").exists()


def test_names_and_shares_reach_the_races(draw, tmp_path: Path):
    assert draw(tracks="abyss, hacienda", karts="tux,gnu,xue", mix="60, 40")[0] == 0
    infos = [json.loads(content) for content in frames(tmp_path / "mine").values()]
    assert {info["track"] for info in infos} == {"abyss", "hacienda"}
    assert {kart for info in infos for kart in info["karts"]} == {"tux", "gnu", "xue"}
    assert read_json(tmp_path / "mine/render.json")["mix"] == [60, 40]


def test_without_art_or_engine_nothing_begins(draw, game: Game, tmp_path: Path, monkeypatch):
    shutil.rmtree(tmp_path / "cache/art")
    assert_one_line_error(draw(), "python -m supertux install-art")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "pystk2", None)  # as if it were not installed
    with pytest.raises(InputError, match="pystk2"):
        render(out=tmp_path / "mine")
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
    """Variables for commands that have the art installed, in a cache of their own."""
    try:
        art.require_engine()
        try:
            folder = art.find(None)
        except InputError:
            folder = (art.installed() / "data/karts").resolve().parent  # installed from elsewhere
    except InputError as error:
        pytest.skip(str(error))
    environment = dict(os.environ, XDG_CACHE_HOME=str(tmp_path_factory.mktemp("cache")))
    command = [sys.executable, "-m", "supertux", "install-art", "--from", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return environment


def command(out: Path, workers: int) -> list[str]:
    return [sys.executable, "-m", "supertux", "render", "--out", str(out), *FLAGS, "--workers", str(workers)]


@pytest.fixture(scope="module")
def undisturbed(environment, tmp_path_factory) -> Path:
    """Two races, drawn one after another."""
    out = tmp_path_factory.mktemp("frames") / "one"
    done = subprocess.run(command(out, 1), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and f"{TWO_RACES} frames; 0 races lost, 0 frames left out" in done.stdout, done.stderr
    return out


@pytest.mark.slow
def test_frames_of_the_game_are_the_courses(undisturbed: Path):
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
    # the camera of view i follows kart i, which is in the middle of nearly every view
    assert sum(ego is not None and ego.track_id == view for view, ego in seen) > 0.9 * len(seen)


@pytest.mark.slow
def test_karts_at_rest_are_seen_from_the_front_and_driven_ones_from_behind(undisturbed: Path):
    placed = {record["race"]: record["placed"] for record in map(read_json, undisturbed.glob(".races/*.json"))}
    ahead = {True: [], False: []}  # metres from the followed kart to others in its view, along its front
    for path in info_files(undisturbed):
        info = read_json(path)
        for view, _ in enumerate(info["detections"]):
            front = rotation_matrix(info["rotation"][view])[:, 2]
            for kart in build_scene(info, view).karts:
                if kart.track_id != view:
                    to_other = np.subtract(info["location"][kart.track_id], info["location"][view])
                    ahead[placed[info["race"]]].append(to_other @ front)
    assert set(placed.values()) == {True, False} and min(map(len, ahead.values())) > 3
    # the camera stands a few metres off: a kart beside the followed one may be in view either way
    assert max(ahead[True]) < 5 and min(ahead[False]) > -5


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(undisturbed: Path, environment, tmp_path: Path):
    subprocess.run(command(tmp_path / "two", 2), cwd=ROOT, env=environment, check=True, capture_output=True)
    assert frames(tmp_path / "two") == frames(undisturbed)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_end(undisturbed: Path, environment, tmp_path: Path):
    out = tmp_path / "killed"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    run = subprocess.Popen(command(out, 1), cwd=ROOT, env=environment, **quiet)
    try:
        while len(frames(out)) < 5:
            assert run.poll() is None
            time.sleep(0.05)
        run.kill()  # the race's process lives on for a while, beside the next run's
        run.wait()
        assert len(frames(out)) < TWO_RACES
        done = subprocess.run(command(out, 1), cwd=ROOT, env=environment, capture_output=True, text=True)
        assert f"{TWO_RACES} frames; 0 races lost" in done.stdout, done.stderr
        assert frames(out) == frames(undisturbed)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
