"""Draw karts' own masks at 600x400, as the truth for the boxes of the label decoder.

The engine repeats a race exactly, so the game state of a labelled view can be drawn again, at full size and with other
shaders. These write into the depth image which kart each mesh belongs to, by the origin that the engine draws it at. So
a kart's mask is what the depth test leaves of the kart drawn alone, without the search in space by which
`labels.segment_instances` separates karts.

Run as a module, this is one of the two drawings, in a process that has the engine.
"""

import json
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from homework.labels.scene import DETECTION_SIZE, KART_CLASS, build_scene
from homework.utils.io import read_json, write_json
from supertux.render.engines import UnreadableError
from supertux.render.engines.pystk2 import assets, labels, shaders
from supertux.render.planner import KARTS, TRACKS, RacePlan
from supertux.render.subprocesses import run_and_exit, run_module

NUM_KARTS = 8  # what three bits can number
NUM_CAMERAS = 4  # with 8, the engine rounds the views' sizes differently at 600x400
NUM_CANDIDATES = 6  # of a race, among which the view with the most karts is chosen
# A kart's meshes (body, wheels, driver, what it holds) have their origins within so many metres of its location; an
# item's mesh has its own at the item's location.
KART_RADIUS_M, ITEM_RADIUS_M = 2.0, 0.15
OVERHANG_M = 0.15  # by which wheels and drivers may stick out of a body
NO_BOX = [DETECTION_SIZE[0], DETECTION_SIZE[1], 0, 0]  # as far off as possible
PROCESS_TIMEOUT_S = 600


def make_plan(track: str, preset: str, seed: int) -> RacePlan:
    """Plan the race to measure on a track; every other track has a static race."""
    rng = random.Random(f"accuracy {seed} {track}")
    karts = rng.sample(KARTS, NUM_KARTS)
    number = TRACKS.index(track)
    is_static = (number + seed) % 2 == 0
    return RacePlan(number, track, karts, rng.getrandbits(30), is_static, rng.randrange(3), 0, 1, preset, [1.0])


def measure_boxes(plan: RacePlan) -> list[dict]:
    """Measure the boxes of the view with the most karts in a race.

    Returns:
        For each kart of which the label rule keeps one box: `kart` (name), `box` (of the labels) and `truth` (of its
        mask), both [x1, y1, x2, y2] in pixels of 600x400; a missing box is `NO_BOX`.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _draw("label", plan, build_overlay(folder / "still"), folder)
        found = read_json(folder / "label.json")
        _draw("truth", plan, build_overlay(folder / "masks", found["karts"], found["items"]), folder, found=found)
        return read_json(folder / "truth.json")


def eligible_karts(plan: RacePlan, boxes: dict[int, list[int]]) -> set[int]:
    """Return those of a view's karts, by their number in the plan, that the label rule keeps."""
    detections = [[KART_CLASS, kart, *box] for kart, box in boxes.items()]
    info = {"track": plan.track, "karts": list(plan.karts), "detections": [detections]}
    return {kart.track_id for kart in build_scene(info, 0).karts}


def _draw(stage: str, plan: RacePlan, overlay: Path, folder: Path, **settings) -> None:
    """Run `stage` in a process of its own."""
    process = {"environment": assets.environment(overlay), "timeout": PROCESS_TIMEOUT_S}
    problem = run_module(__name__, stage, folder, stdin=json.dumps({"plan": asdict(plan), **settings}), **process)
    assert problem is None, f"{plan.track}: {problem}"


def build_overlay(overlay: Path, karts: list[dict] | None = None, items: list | None = None) -> Path:
    """Build an overlay like the installed one, in which meshes with joints keep the pose that they are stored in.

    The engine moves joints by the clock, which the two drawings of a state read differently often.

    Args:
        overlay: a new folder.
        karts: up to 8, each with `location`, `rotation` and `size` as the engine's. With them, a kart's pixels have its
            number, from 0, in place of the origin; all others count as track.
        items: their locations [n, 3], in metres.
    """
    source = (assets.OVERLAY / "data/karts").resolve().parent
    assets.build_overlay(source, overlay)
    changes = {"joint_matrix * idle_position": "idle_position"}
    if karts:
        changes[shaders.VERTEX_LABEL] = f"    {_kart_search(karts, items)}\n}}\n"
    for name, text in shaders.patch_shaders(source).items():
        for old, new in changes.items():
            text = text.replace(old, new)
        (overlay / "data" / name).write_text(text)
    return overlay


def _kart_search(karts: list[dict], items: list) -> str:
    """Return the vertex shaders' code that finds a mesh's kart: the one whose body its origin is in.

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
        lines.append(f"label_away += max(0.0, max(label_b.x, label_b.z) - {OVERHANG_M});")
        lines.append(f"if (distance(i_origin, {location}) > {KART_RADIUS_M}) label_away = 1.0e6;")
        code = 1 + 2 * number  # as objects have it
        lines.append(f"if (label_away < label_near) {{ label_near = label_away; label_origin = {code}; }}")
    for item in items:
        if min(np.linalg.norm(np.subtract(kart["location"], item)) for kart in karts) < KART_RADIUS_M + ITEM_RADIUS_M:
            lines.append(f"if (distance(i_origin, {_vector(item)}) < {ITEM_RADIUS_M}) label_origin = 0;")
    return "\n".join(lines)


def _vector(values) -> str:
    return "vec3({})".format(", ".join(f"{value:.9e}" for value in values))


def decode_instance_ids(depth: np.ndarray) -> tuple[np.ndarray, labels.DecodedDepth]:
    """Decode the depths [h, w] that the shaders of an overlay with karts write.

    Returns:
        The number of each pixel's kart [h, w] int, from 1, 0 for none; and the result of `labels.decode`.
    """
    view = labels.decode(depth)
    return np.where(view.is_object, view.cell + 1, 0), view


def _candidates(plan: RacePlan, size: tuple[int, int]) -> Iterator:
    """Yield the race at each of its candidates, which are the same whether they are drawn or not."""
    from supertux.render.engines.pystk2.engine import Race  # only this process has it

    race = Race(plan, size, NUM_CAMERAS)
    for _, _ in zip(range(NUM_CANDIDATES), race.candidates(np.random.default_rng(plan.seed)), strict=False):
        race.settle_cameras()
        yield race


def label(plan: RacePlan, folder: Path) -> None:
    """Draw a race's candidates as the worker does, and store the view that shows the most karts."""
    from supertux.render.engines.pystk2.engine import DRAWN_SIZE, ITEM_CLASS

    most = 0
    for candidate, race in enumerate(_candidates(plan, DRAWN_SIZE)):
        _, depths = race.draw()
        try:
            frame = race.read()
        except UnreadableError:
            continue
        for camera, view in zip(np.argsort(race.camera_targets).tolist(), frame.views, strict=True):
            boxes = {frame.order[row[1]]: row[2:] for row in view.detections if row[0] == KART_CLASS}
            count = len(eligible_karts(plan, boxes))
            if count > most:
                most = count
                items = [item.location for item in race.state.items if item.type.name in ITEM_CLASS]
                found = {"candidate": candidate, "camera": camera, "boxes": list(boxes.items())}
                found["matrix"] = labels.decode(depths[camera]).matrix.tolist()
                found["items"] = [[float(value) for value in item] for item in items]
                write_json(folder / "label.json", found | {"karts": kart_poses(race)})
    if not most:
        raise ValueError("no kart is visible; try another seed")


def truth(plan: RacePlan, folder: Path, found: dict) -> None:
    """Draw at 600x400 the game state that `label` found, and write both kinds of boxes."""
    race = next(race for number, race in enumerate(_candidates(plan, DETECTION_SIZE)) if number == found["candidate"])
    _, depths = race.draw()
    owner, view = decode_instance_ids(depths[found["camera"]])
    if kart_poses(race) != found["karts"] or not np.allclose(view.matrix, found["matrix"], atol=1e-4):
        raise ValueError("re-rendering did not reproduce this frame; try another seed")
    masks = {number - 1: box for number, box in labels.boxes(owner, range(1, NUM_KARTS + 1)).items()}
    boxes = dict(found["boxes"])
    rows = [
        {"kart": plan.karts[kart], "box": boxes.get(kart, NO_BOX), "truth": masks.get(kart, NO_BOX)}
        for kart in sorted(eligible_karts(plan, masks) | eligible_karts(plan, boxes))
    ]
    write_json(folder / "truth.json", rows)


def kart_poses(race) -> list[dict]:
    """Return the karts' locations, rotations and sizes."""
    keys = ("location", "rotation", "size")
    return [{key: [float(value) for value in getattr(kart, key)] for key in keys} for kart in race.karts]


def main() -> None:
    """Draw the stage named on the command line, whose task is on standard input."""
    stage, folder = sys.argv[1:]
    task = json.loads(sys.stdin.read())
    plan = RacePlan(**task.pop("plan"))
    run_and_exit(lambda: {"label": label, "truth": truth}[stage](plan, Path(folder), **task))


if __name__ == "__main__":
    main()
