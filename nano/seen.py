"""Scenes as the stages learn them: with the karts that are too small to count."""

from dataclasses import dataclass, replace

from homework.scene import KART_CLASS, MIN_SIDE, VIEW_SIZE, Kart, Scene, box_in_view, scene

LEAST_SIDE = 2  # pixels of a box's shorter side: of less there is nothing to be seen


@dataclass(frozen=True)
class Seen(Scene):
    """A scene with the karts, too, that are in the view and too small to count.

    Whether one counts is a matter of a pixel, and answers about the whole view hang on it: what is learned of a kart
    must not end there.
    """

    small: tuple[Kart, ...] = ()


def seen(info: dict, view_index: int) -> Seen:
    """The scene of a view by the label rule, with the karts that it leaves out.

    Args:
        info, view_index: as `scene`'s.
    """
    counted, small = scene(info, view_index), []
    for class_id, track_id, *box in info["detections"][view_index]:
        if class_id == KART_CLASS:
            kart = Kart(track_id, info["karts"][track_id], box_in_view(box))
            if LEAST_SIDE <= kart.side < MIN_SIDE:
                small.append(kart)
    return Seen(counted.track, counted.karts, tuple(small))


def all_karts(scene: Scene) -> tuple[Kart, ...]:
    """Those that count, and those that don't, where they are known."""
    return scene.karts + (scene.small if isinstance(scene, Seen) else ())


def mirror(scene: Scene) -> Scene:
    """The scene of the image flipped left to right."""

    def flipped(karts: tuple[Kart, ...]) -> tuple[Kart, ...]:
        boxes = [(VIEW_SIZE[0] - x2, y1, VIEW_SIZE[0] - x1, y2) for x1, y1, x2, y2 in (kart.box for kart in karts)]
        return tuple(replace(kart, box=box) for kart, box in zip(karts, boxes, strict=True))

    small = {"small": flipped(scene.small)} if isinstance(scene, Seen) else {}
    return replace(scene, karts=flipped(scene.karts), **small)
