"""The engines that draw races, behind one interface, and the preset that each of them draws.

An engine is a package with two modules. `assets` has `find_missing`, and `environment` and `INTERPRETER` of a process
that draws; `engine` has the `Race` and can be imported by such a process only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import NamedTuple, Protocol

import numpy as np

from homework.utils.errors import InputError

from ..color_augment import PhotometricJitter


class UnreadableError(Exception):
    """The labels of a drawn frame cannot be used; the message is the reason in a word."""


@dataclass(frozen=True)
class CameraView:
    """Hold the view of one camera; `detections` has rows of (class, number, box), as in `info.json`."""

    image: np.ndarray  # [h, w, 3] uint8
    detections: list[list[int]]


@dataclass(frozen=True)
class LabelledFrame:
    """A drawn frame; the camera target of view v is kart v of `karts`."""

    time: float  # seconds since the start of the race
    order: list[int]  # the karts' numbers in the race's plan
    karts: list  # the engine's objects
    views: list[CameraView]


class Race(Protocol):
    """A race in an engine, as the worker uses it.

    `candidates` advances to one game state after another and yields how many karts each camera probably sees, [karts];
    an empty array stands for a state to draw in any case. To draw one, call `settle_cameras`, which brings karts and
    cameras to their places, and `read`, which raises UnreadableError.
    """

    num_cameras: int
    max_rejections: int  # candidates in a row that may be left out

    def candidates(self, rng: np.random.Generator) -> Iterator[np.ndarray]: ...
    def settle_cameras(self) -> None: ...
    def read(self) -> LabelledFrame: ...
    def sample_jitter(self, rng: np.random.Generator) -> PhotometricJitter: ...


class Missing(NamedTuple):
    """Something that has to be installed before frames can be drawn."""

    problem: str
    remedy: str


@dataclass(frozen=True)
class Engine:
    """An engine, and what the plan of its races depends on."""

    package: str  # in this folder
    camera_counts: tuple[int, ...]  # whose views have the right shape
    frames_per_race: int
    has_static_races: bool  # without, a planned race stands for several in a row, each with some of its karts

    def load(self, name: str) -> ModuleType:
        """Load one of the engine's two modules."""
        return import_module(f".{self.package}.{name}", __name__)


# pystk2 takes a view's width from a split screen: those of 2, 5 or 6 cameras are squeezed, those above 8 are blank.
PYSTK2 = Engine("pystk2", (1, 3, 4, 7, 8), frames_per_race=64, has_static_races=True)
# Each race of the course's data has 10 karts.
LEGACY = Engine("pystk1", tuple(range(1, 11)), frames_per_race=20, has_static_races=False)
ENGINES = {"ld": PYSTK2, "sd": PYSTK2, "hd": PYSTK2, "course": LEGACY}  # by preset


def check_installed(preset: str) -> None:
    """Check that a preset can be drawn on this machine. Raises InputError; see `check_none_missing`."""
    check_none_missing(f"--preset {preset}", ENGINES[preset].load("assets").find_missing())


def check_none_missing(name: str, missing: list[Missing]) -> None:
    """Check that nothing is missing. Raises InputError for `name`, with all that is, and all remedies."""
    if missing:
        problem = f"cannot draw: {'; '.join(one.problem for one in missing)}"
        raise InputError(name, problem, f"run {', then '.join(one.remedy for one in missing)}")
