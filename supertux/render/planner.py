"""What will be drawn: the races of a run, a function of its seed alone.

Any race can be drawn by any process at any time, so a run can be spread over workers and taken up again.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from homework.labels.game import KARTS as ALL_KARTS
from homework.labels.game import REMOVED_KARTS, TRACKS
from homework.utils.errors import InputError, suggest_name

KARTS = tuple(kart for kart in ALL_KARTS if kart not in REMOVED_KARTS)
COURSE = "course"  # the preset that is drawn by the engine of the course's frames (`course_engine.py`)
PRESETS = ("ld", "sd", "hd", COURSE)
FRAMES_PER_RACE, COURSE_FRAMES_PER_RACE = 64, 20
JPEG_QUALITY = 95  # as the course's valid; at less, far karts lose their colours (docs/RENDERING.md)
# How many cameras the engine gives views of the right shape: it takes their width from a split screen, so that those of
# 2, 5 or 6 cameras are squeezed; more than 8 are blank.
CAMERAS = (1, 3, 4, 7, 8)
MAX_FRAMES = 16**5  # a frame's name has five hexadecimal digits
# How often a race has 1, 2, ... 10 karts: mostly full, as in the course's data, where every race has 10.
NUM_KARTS_WEIGHTS = (1, 1, 1, 1, 1, 2, 2, 4, 4, 6)
COURSE_KARTS = 10  # in each race of the course's data
# Views with 1, 2, ... 7 karts among those of the course's train split, by the label rule, in percent.
OFFICIAL_MIX = (60.6, 26.0, 8.4, 3.6, 0.8, 0.4, 0.2)


@dataclass(frozen=True)
class RacePlan:
    """One race. `mix` is the wanted share of views with 1, 2, ... karts, in any unit.

    `placed` says how its karts come to where they are: by driving, or put there at rest. 59 % of the course's
    frames were taken after the race's end: all karts stand still behind the finish, most within 270 m, and the
    camera, whose distance grows with speed, is close, ahead of the kart, and looks back at it.
    """

    number: int
    track: str
    karts: tuple[str, ...]
    seed: int
    placed: bool
    difficulty: int
    first_frame: int
    frames: int
    preset: str
    mix: tuple[float, ...]
    quality: int = JPEG_QUALITY

    @property
    def cameras(self) -> int:
        """How many views a frame has."""
        if self.preset == COURSE:
            return min(COURSE_KARTS, len(self.karts))
        return max(count for count in CAMERAS if count <= len(self.karts))

    def record_in(self, folder: Path) -> Path:
        """Where it is said what of the race has been drawn into a split's folder, once it has."""
        return folder / f".races/{self.number:05d}.json"

    def to_json(self) -> str:
        """For the process that draws it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "RacePlan":
        """The reverse of `to_json`."""
        fields = json.loads(text)
        return cls(**fields | {"karts": tuple(fields["karts"]), "mix": tuple(fields["mix"])})

    @classmethod
    def for_check(cls, preset: str = "sd") -> "RacePlan":
        """The smallest race: one frame of two karts on a track that loads fast."""
        return cls(0, "xr591", ("tux", "gnu"), 1, preset != COURSE, 0, 0, 1, preset, (1, 1))


def race_plans(
    seed: int,
    frames: int,
    tracks: list[str],
    karts: list[str],
    preset: str,
    mix: tuple[float, ...] = OFFICIAL_MIX,
    num_karts: int | None = None,
    frames_per_race: int | None = None,
    quality: int = JPEG_QUALITY,
) -> Iterator[RacePlan]:
    """The races that give `frames` frames. More frames of the same seed begin with the same races.

    The tracks take turns, in another order each time, and on each of them driven and placed races do. On each track
    the karts are dealt from two shuffled decks, for driven and for placed races, each of which is shuffled again when
    it is used up: each track sees each kart from behind as often as any other, give or take one, and so from the front.

    Args:
        seed: of everything.
        frames: of all races together.
        tracks, karts: which of TRACKS and KARTS.
        preset: one of PRESETS.
        mix: see RacePlan.
        num_karts: in every race; without it, by NUM_KARTS_WEIGHTS.
        frames_per_race: of all but the last.
        quality: of the JPEG files, 1 to 95.

    Raises:
        InputError: a track, a kart or a preset that isn't there, or a number of frames that no name can hold.
    """
    require_known("--tracks", tracks, TRACKS)
    require_known("--karts", karts, KARTS)
    require_known("--preset", [preset], PRESETS)
    if not 1 <= frames <= MAX_FRAMES:
        raise InputError("--frames", f"{frames} frames", f"ask for 1 to {MAX_FRAMES:,}")
    if frames_per_race is None:
        frames_per_race = COURSE_FRAMES_PER_RACE if preset == COURSE else FRAMES_PER_RACE
    if preset == COURSE:
        num_karts = len(karts)  # each race of this engine takes some of them
    rng = random.Random(f"races {seed}")
    decks = {(track, fate): [] for track in tracks for fate in (False, True)}
    placed = {track: rng.random() < 0.5 and preset != COURSE for track in tracks}
    order, number = [], 0
    while number * frames_per_race < frames:
        if not order:
            order = rng.sample(tracks, len(tracks))
        track = order.pop()
        wanted = num_karts or 1 + rng.choices(range(len(NUM_KARTS_WEIGHTS)), NUM_KARTS_WEIGHTS)[0]
        hand = _deal(decks[track, placed[track]], karts, min(wanted, len(karts)), rng)
        first = number * frames_per_race
        length = min(frames_per_race, frames - first)
        fate = (rng.getrandbits(30), placed[track], rng.randrange(3))
        yield RacePlan(number, track, hand, *fate, first, length, preset, tuple(mix), quality)
        placed[track] = not placed[track] and preset != COURSE
        number += 1


def _deal(deck: list[str], karts: list[str], count: int, rng: random.Random) -> tuple[str, ...]:
    """`count` different karts off the top of `deck`, which is filled again in between if need be."""
    hand = []
    while len(hand) < count:
        if not deck:
            deck.extend(rng.sample(karts, len(karts)))
        # after a new shuffle a kart may come that is in the hand already: it waits in the deck
        place = next(i for i in reversed(range(len(deck))) if deck[i] not in hand)
        hand.append(deck.pop(place))
    return tuple(hand)


def names_in(text: str) -> list[str]:
    """The names of a flag's text, which have commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def require_known(flag: str, names: list[str], known) -> None:
    """Raises InputError for a name that is not among the known ones, for one given twice, and for none."""
    for name in names:
        if name not in known:
            raise InputError(flag, f"unknown name {name}", suggest_name(name, known, f"choose from {', '.join(known)}"))
    if len(set(names)) < len(names) or not names:
        raise InputError(flag, "a name twice, or none", "name each once")
