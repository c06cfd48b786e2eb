"""Which frames show the same moment: after a race's end the course's frames repeat one again and again."""

from pathlib import Path

from ..utils.errors import InputError


def state_key(info: dict, path: Path) -> tuple:
    """The track and where each kart is on it, in whole metres: the same in frames of karts that stand still.

    Raises:
        InputError: the frame doesn't tell; with its `path`.
    """
    distances = info.get("distance_down_track")
    if not isinstance(distances, list) or len(distances) < len(info["detections"]):
        raise InputError(path, "`distance_down_track` is missing or too short", "name a folder of the game's frames")
    return info["track"], *(round(distance) for distance in distances)
