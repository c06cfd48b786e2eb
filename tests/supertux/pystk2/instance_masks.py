"""How exact the karts' boxes are: each against the box of the kart's own mask at 600x400.

The engine repeats a race to the digit, so the moment of a labelled view can be drawn again, at full size and with other
shaders. These write into the depth image which kart each mesh belongs to, by the origin that the engine draws it at.
So a kart's mask is what the depth test leaves of the kart drawn alone, and the search in space by which
`labels.instances` tells karts apart has no part in it.
"""

import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from homework.labels.scene import DETECTION_SIZE, KART_CLASS, build_scene
from homework.utils.errors import InputError
from homework.utils.io import read_json, write_json

from ... import subprocesses as child
from ...planner import KARTS, PRESETS, TRACKS, RacePlan, names_in, require_known
from . import assets as art
from . import labels, shaders

NUM_KARTS = 8  # what three bits can tell apart
NUM_CAMERAS = 4  # with 8, the image's sides that the engine reckons with are rounded otherwise at 600x400
MOMENTS = 6  # of a race, among which the view with the most karts is looked for
TOLERANCE = 3  # pixels of 600x400
EDGES = ("left", "top", "right", "bottom")
# A kart's meshes (body, wheels, driver, what it holds) have their origins within so many metres of its location; an
# item's mesh has its own where the engine says that the item is.
KART_RADIUS, ITEM_RADIUS = 2.0, 0.15
OVERHANG = 0.15  # metres by which wheels and drivers may stick out of a body
NO_BOX = [DETECTION_SIZE[0], DETECTION_SIZE[1], 0, 0]  # as far off as can be
PROCESS_LIMIT = 600  # seconds


def accuracy(*, tracks: str = "", preset: str = "sd", seed: int = 1, views: int = 1) -> None:
    """Measure the karts' boxes, on views of each track, against their own masks at 600x400; print each and a summary.

    Example: python -m supertux accuracy --tracks xr591,abyss

    Args:
        tracks: names with commas between them; without it, all 21
        preset: ld, sd or hd
        seed: of the races
        views: how many views of each track, those that show the most karts
    """
    art.require_engine()
    names = names_in(tracks) or list(TRACKS)
    require_known("--tracks", names, TRACKS)
    require_known("--preset", [preset], PRESETS)
    if views < 1:
        raise InputError("--views", f"{views} views of a track", "ask for 1 or more")
    form = "{:20} {:7} {:16} {:>19} {:>19} {:>3} {}"
    print(form.format("track", "karts", "kart", "box of the labels", "box of its mask", "off", ""))
    errors = []
    for name in names:
        plan = plan_of(name, preset, seed)
        for row in measure(plan, views):
            off = np.abs(np.subtract(row["box"], row["truth"]))
            boxes = [" ".join(f"{value:4d}" for value in row[key]) for key in ("box", "truth")]
            far = " ".join(edge for edge, value in zip(EDGES, off, strict=True) if value > TOLERANCE)
            print(form.format(name, "placed" if plan.placed else "driven", row["kart"], *boxes, off.max(), far))
            sys.stdout.flush()
            errors.append(off)
    if not errors:
        raise InputError("--tracks", "no kart is seen there", "give other tracks or another --seed")
    errors = np.array(errors)
    print(
        f"{len(errors)} karts: {np.mean(errors <= TOLERANCE):.1%} of {errors.size} edges within {TOLERANCE} pixels of "
        f"{DETECTION_SIZE[0]}x{DETECTION_SIZE[1]}; mean {errors.mean():.2f}, largest {errors.max()}"
    )


def plan_of(track: str, preset: str, seed: int) -> RacePlan:
    """The race to measure on a track. Every other one is driven, every other one has karts put on the road."""
    rng = random.Random(f"accuracy {seed} {track}")
    karts = tuple(rng.sample(KARTS, NUM_KARTS))
    number = TRACKS.index(track)
    placed = (number + seed) % 2 == 0
    return RacePlan(number, track, karts, rng.getrandbits(30), placed, rng.randrange(3), 0, 1, preset, (1.0,))


def measure(plan: RacePlan, views: int) -> list[dict]:
    """The boxes of a race's views that show the most karts.

    Returns:
        For each kart of which the label rule keeps one box: `view` (camera), `kart` (name), `box` (of the labels) and
        `truth` (of its mask), both [x1, y1, x2, y2] in pixels of 600x400; a box that is missing is `NO_BOX`.

    Raises:
        InputError: a process fails, or the moment is not the same when it is drawn again.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _child("label", plan, build(folder / "still"), folder, views=views)
        found = read_json(folder / "label.json")
        _child("truth", plan, build(folder / "telling", (found["karts"], found["items"])), folder, found=found)
        rows = read_json(folder / "truth.json")["rows"]
    if rows is None:
        raise InputError(plan.track, "drawn again, the moment is not the same", "try another --seed")
    return rows


def kept(plan: RacePlan, boxes: dict[int, list[int]]) -> set[int]:
    """Those of a view's karts, by their place in `plan.karts`, that the label rule keeps."""
    detections = [[KART_CLASS, kart, *box] for kart, box in boxes.items()]
    info = {"track": plan.track, "karts": list(plan.karts), "detections": [detections]}
    return {kart.track_id for kart in build_scene(info, 0).karts}


def _child(stage: str, plan: RacePlan, overlay: Path, folder: Path, **settings) -> None:
    """Run `stage` in a process of its own, as the race's frames are drawn."""
    task = json.dumps({"plan": plan.to_json(), **settings})
    environment = art.environment(overlay)
    problem = child.run(
        "supertux.render.engines.pystk2.check_boxes",
        stage,
        folder,
        text=task,
        environment=environment,
        limit=PROCESS_LIMIT,
    )
    if problem:
        raise InputError(plan.track, f"no view could be drawn ({problem})", "try another --seed")


def build(overlay: Path, telling: tuple[list[dict], list] | None = None) -> Path:
    """An overlay like the installed one, in which meshes with joints keep the pose that they are stored in.

    The engine moves joints by the clock, which the two drawings of a moment look at differently often.

    Args:
        overlay: where to; there is nothing yet.
        telling: up to 8 karts, each with `location`, `rotation` and `size` as the engine's, and the locations of what
            lies about [n, 3], in metres. With them, a kart's pixels have its number, from 0, in place of the origin;
            no others count as placed.
    """
    source = (art.installed() / "data/karts").resolve().parent
    art.build(source, overlay)
    changes = {"joint_matrix * idle_position": "idle_position"}
    if telling:
        changes[shaders.VERTEX_LABEL] = f"    {_search(*telling)}\n}}\n"
    for name, text in shaders.patched(source).items():
        for old, new in changes.items():
            text = text.replace(old, new)
        (overlay / "data" / name).write_text(text)
    return overlay


def _search(karts: list[dict], items: list) -> str:
    """The vertex shaders' text that finds a mesh's kart: the one whose body its origin is in.

    Lights, and what a kart holds, have their origins outside of it, up to over a metre in front, where the next kart
    may be. So it also counts how far the mesh's corner sticks out, beyond what wheels do.
    """
    lines = ["label_origin = 0;", "float label_near = 1.0e6;", "float label_away;", "vec3 label_a, label_b;"]
    for number, kart in enumerate(karts):
        location = _vector(kart["location"])
        axes = "mat3({})".format(", ".join(_vector(axis) for axis in labels.rotation_matrix(kart["rotation"]).T))
        width, _, length = kart["size"]
        half = _vector([width / 2, 0, length / 2])
        lines.append(f"label_a = abs((i_origin - {location}) * {axes}) - {half};")
        lines.append(f"label_b = abs((world_position.xyz - {location}) * {axes}) - {half};")
        lines.append(f"float label_{number} = max(label_a.x, label_a.z);")
        lines.append(f"label_away = max(label_{number}, 0.0) + 0.1 * label_{number};")
        lines.append(f"label_away += max(0.0, max(label_b.x, label_b.z) - {OVERHANG});")
        lines.append(f"if (distance(i_origin, {location}) > {KART_RADIUS}) label_away = 1.0e6;")
        code = 1 + 2 * number  # as the placed have it
        lines.append(f"if (label_away < label_near) {{ label_near = label_away; label_origin = {code}; }}")
    for item in items:
        if min(np.linalg.norm(np.subtract(kart["location"], item)) for kart in karts) < KART_RADIUS + ITEM_RADIUS:
            lines.append(f"if (distance(i_origin, {_vector(item)}) < {ITEM_RADIUS}) label_origin = 0;")
    return "\n".join(lines)


def _vector(values) -> str:
    return "vec3({})".format(", ".join(f"{value:.9e}" for value in values))


def owners(depth: np.ndarray) -> tuple[np.ndarray, labels.Depth]:
    """What `build`'s telling shaders wrote, from depths [h, w].

    Returns:
        The number of each pixel's kart [h, w] int, from 1, 0 for none; and what `labels.decode` finds in the others.
    """
    view = labels.decode(depth)
    return np.where(view.placed, view.cell + 1, 0), view


def _moments(plan: RacePlan, size: tuple[int, int]) -> Iterator:
    """The race at each of its moments, all of which come about in the same way whether they are drawn or not."""
    from .engine import Race  # not every command of this package has it

    race = Race(plan, size, NUM_CAMERAS)
    race.start()
    for _, _ in zip(range(MOMENTS), race.moments(np.random.default_rng(plan.seed)), strict=False):
        race.arrive()
        yield race


def label(plan: RacePlan, folder: Path, views: int) -> None:
    """Draw a race's moments as `race.run` does, and keep the one with the views that show the most karts."""
    from .engine import DRAWN_SIZE, ITEM_CLASS

    best = 0
    for moment, race in enumerate(_moments(plan, DRAWN_SIZE)):
        drawn = race.draw()
        try:
            seen = race.read(drawn)
        except labels.UnreadableError:
            continue
        shown = []
        for camera, view in zip(race.ordered_cameras, seen.views, strict=True):
            boxes = {seen.order[row[1]]: row[2:] for row in view.detections if row[0] == KART_CLASS}
            matrix = labels.decode(drawn[1][camera]).matrix
            shown.append({"camera": camera, "matrix": matrix.tolist(), "boxes": list(boxes.items())})
        shown = sorted(shown, key=lambda view: -len(kept(plan, dict(view["boxes"]))))[:views]
        count = sum(len(kept(plan, dict(view["boxes"]))) for view in shown)
        if count > best:
            best = count
            lying = [item for item in race.state.items if item.type.name in ITEM_CLASS]
            items = [[float(value) for value in item.location] for item in lying]
            found = {"moment": moment, "views": shown, "karts": _bodies(race), "items": items}
            write_json(folder / "label.json", found)
    if not best:
        raise ValueError("no kart is seen")


def truth(plan: RacePlan, folder: Path, found: dict) -> None:
    """Draw at 600x400 the moment that `label` found, and write both kinds of boxes; none if it is another moment."""
    race = next(race for number, race in enumerate(_moments(plan, DETECTION_SIZE)) if number == found["moment"])
    _, depths = race.draw()
    same, rows = _bodies(race) == found["karts"], []
    for view in found["views"]:
        owner, others = owners(depths[view["camera"]])
        same = same and np.allclose(others.matrix, view["matrix"], atol=1e-4)
        true = {number - 1: box for number, box in labels.boxes(owner, range(1, NUM_KARTS + 1)).items()}
        told = dict(view["boxes"])
        for kart in sorted(kept(plan, true) | kept(plan, told)):
            row = {"view": view["camera"], "kart": plan.karts[kart]}
            rows.append(row | {"box": told.get(kart, NO_BOX), "truth": true.get(kart, NO_BOX)})
    write_json(folder / "truth.json", {"rows": rows if same else None})


def _bodies(race) -> list[dict]:
    keys = ("location", "rotation", "size")
    return [{key: [float(value) for value in getattr(kart, key)] for key in keys} for kart in race.karts]


def main() -> None:
    """One of the two drawings, whose task comes on standard input."""
    stage, folder = sys.argv[1:]
    task = json.loads(sys.stdin.read())
    plan = RacePlan.from_json(task.pop("plan"))
    child.end_after(lambda: {"label": label, "truth": truth}[stage](plan, Path(folder), **task))


if __name__ == "__main__":
    main()
