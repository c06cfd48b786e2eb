"""Find duplicate frames: after a race ends, the course's frames repeat one game state many times."""

from pathlib import Path

from ..utils.errors import InputError


def state_key(info: dict, path: Path) -> tuple:
    """Return the track and each kart's position along it in whole metres, equal in duplicate frames.

    Raises:
        InputError: the frame at `path` does not hold the positions.
    """
    distances = info.get("distance_down_track")
    if not isinstance(distances, list) or len(distances) < len(info["detections"]):
        raise InputError(path, "`distance_down_track` is missing or too short", "choose a folder of the game's frames")
    return info["track"], *(round(distance) for distance in distances)
