"""Plan the races of a split, as a function of the seed alone.

Any process can draw any race at any time, so rendering can be spread over workers and resumed.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from homework.labels.game import KARTS as ALL_KARTS
from homework.labels.game import REMOVED_KARTS, TRACKS
from homework.utils.errors import InputError, suggest_name

from .engines import ENGINES

KARTS = tuple(kart for kart in ALL_KARTS if kart not in REMOVED_KARTS)
JPEG_QUALITY = 95  # as the course's valid; at less, far karts lose their colours (docs/RENDERING.md)
MAX_FRAMES = 16**5  # a frame's name has five hexadecimal digits
# Weights of races with 1, 2, ... 10 karts: mostly full, as in the course's data, where every race has 10.
NUM_KARTS_WEIGHTS = (1, 1, 1, 1, 1, 2, 2, 4, 4, 6)
# Percent of the views of the course's train split that show 1, 2, ... 7 karts, by the label rule.
COURSE_KART_COUNT_MIX = (60.6, 26.0, 8.4, 3.6, 0.8, 0.4, 0.2)


@dataclass(frozen=True)
class RacePlan:
    """One race; a plan is sent to the process that draws it as JSON.

    In a static race the karts are placed on the track, at rest, as in those 59 % of the course's frames that were taken
    after the race's end; the camera is close, ahead of the kart. In a simulated race the computer drives them.
    """

    number: int
    track: str
    karts: list[str]
    seed: int
    is_static: bool
    difficulty: int
    first_frame: int
    frames: int
    preset: str
    kart_count_mix: list[float]  # wanted shares of views with 1, 2, ... karts, in any unit
    quality: int = JPEG_QUALITY

    @property
    def num_cameras(self) -> int:
        """The number of views per frame."""
        return max(count for count in ENGINES[self.preset].camera_counts if count <= len(self.karts))

    @property
    def num_views(self) -> int:
        """The number of views in all frames."""
        return self.frames * self.num_cameras

    def record_path(self, folder: Path) -> Path:
        """Return the file in a split's folder that records the drawn race."""
        return folder / f".races/{self.number:05d}.json"


def race_plans(
    seed: int,
    frames: int,
    tracks: list[str],
    karts: list[str],
    preset: str,
    kart_count_mix: tuple[float, ...] = COURSE_KART_COUNT_MIX,
    num_karts: int | None = None,
    frames_per_race: int | None = None,
    quality: int = JPEG_QUALITY,
) -> Iterator[RacePlan]:
    """Yield the races that give `frames` frames. More frames of the same seed begin with the same races.

    The tracks take turns, in another order each time, and on each of them simulated and static races do. On each track
    the karts are dealt from two shuffled decks, for simulated and for static races, each of which is shuffled again
    when it is used up: each track shows each kart from behind as often as any other, give or take one, and so from the
    front.

    Args:
        num_karts: in every race; by default sampled by NUM_KARTS_WEIGHTS.
        frames_per_race: of all races but the last; by default the engine's.
        quality: of the JPEG files, 1 to 95.

    Raises:
        InputError: an unknown track, kart or preset, or a number of frames that names cannot hold.
    """
    check_known_names("--tracks", tracks, TRACKS)
    check_known_names("--karts", karts, KARTS)
    check_known_names("--preset", [preset], ENGINES)
    if not 1 <= frames <= MAX_FRAMES:
        raise InputError("--frames", f"cannot draw {frames} frames", f"give 1 to {MAX_FRAMES:,}")
    engine = ENGINES[preset]
    frames_per_race = frames_per_race or engine.frames_per_race
    if not engine.has_static_races:
        num_karts = len(karts)
    rng = random.Random(f"races {seed}")
    decks = {(track, is_static): [] for track in tracks for is_static in (False, True)}
    is_static = {track: rng.random() < 0.5 and engine.has_static_races for track in tracks}
    order = []
    for number, first in enumerate(range(0, frames, frames_per_race)):
        order = order or rng.sample(tracks, len(tracks))
        track = order.pop()
        wanted = num_karts or 1 + rng.choices(range(len(NUM_KARTS_WEIGHTS)), NUM_KARTS_WEIGHTS)[0]
        hand = _deal(decks[track, is_static[track]], karts, min(wanted, len(karts)), rng)
        race = {"seed": rng.getrandbits(30), "is_static": is_static[track], "difficulty": rng.randrange(3)}
        race |= {"first_frame": first, "frames": min(frames_per_race, frames - first), "preset": preset}
        yield RacePlan(number, track, hand, kart_count_mix=list(kart_count_mix), quality=quality, **race)
        is_static[track] = not is_static[track] and engine.has_static_races


def _deal(deck: list[str], karts: list[str], count: int, rng: random.Random) -> list[str]:
    """Deal `count` different karts off the top of `deck`, refilling it when it is used up."""
    hand = []
    while len(hand) < count:
        if not deck:
            deck.extend(rng.sample(karts, len(karts)))
        # after a refill, karts that are already in the hand wait in the deck
        place = next(i for i in reversed(range(len(deck))) if deck[i] not in hand)
        hand.append(deck.pop(place))
    return hand


def check_known_names(flag: str, names: list[str], known) -> None:
    """Check the names given to a flag. Raises InputError if one is unknown or given twice, or there is none."""
    for name in names:
        if name not in known:
            raise InputError(flag, f"unknown name {name}", suggest_name(name, known, f"choose from {', '.join(known)}"))
    if len(set(names)) < len(names) or not names:
        raise InputError(flag, "a name is missing or given twice", "give each name once")
