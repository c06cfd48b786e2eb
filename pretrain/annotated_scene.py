"""Scenes as the stages learn them: with the karts that are too small to count."""

from dataclasses import dataclass, replace

from homework.labels.scene import VIEW_SIZE, Kart, Scene, detected_karts

LEAST_SIDE = 2  # pixels of a box's shorter side: of less there is nothing to be seen


@dataclass(frozen=True)
class Seen(Scene):
    """A scene with the karts, too, that are in the view and too small to count.

    Whether one counts is a matter of a pixel, and answers about the whole view hang on it: what is learned of a kart
    must not end there.
    """

    small: tuple[Kart, ...] = ()

    @property
    def all_karts(self) -> tuple[Kart, ...]:
        """Those that count, and those that don't."""
        return self.karts + self.small


def seen(info: dict, view_index: int) -> Seen:
    """The scene of a view by the label rule, with the karts that it leaves out.

    Args:
        info, view_index: as `scene`'s.
    """
    karts = list(detected_karts(info, view_index))
    small = tuple(kart for kart in karts if not kart.is_large_enough and kart.min_side >= LEAST_SIDE)
    return Seen(info["track"], tuple(kart for kart in karts if kart.is_large_enough), small)


def mirror(scene: Seen) -> Seen:
    """The scene of the image flipped left to right."""
    return replace(scene, karts=_flipped(scene.karts), small=_flipped(scene.small))


def _flipped(karts: tuple[Kart, ...]) -> tuple[Kart, ...]:
    boxes = [(VIEW_SIZE[0] - x2, y1, VIEW_SIZE[0] - x1, y2) for x1, y1, x2, y2 in (kart.box for kart in karts)]
    return tuple(kart._replace(box=box) for kart, box in zip(karts, boxes, strict=True))
