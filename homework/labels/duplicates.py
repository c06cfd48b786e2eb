"""Find duplicate frames, and intervals that allow for them: after a race the course's frames repeat one moment."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..utils.errors import InputError

NUM_RESAMPLES = 2000
MEAN = "mean"  # of the groups, in the result of `bootstrap_by_moment`


class Estimate(NamedTuple):
    """A mean, and its 95 % interval."""

    value: float
    low: float
    high: float


def moment_key(info: dict, name: str | Path) -> Hashable:
    """Return what duplicates of a frame have in common: its track, and each kart's position along it in whole metres.

    A frame whose info has no positions is a moment of its own, its name.

    Raises:
        InputError: the positions are not those of its karts.
    """
    if "distance_down_track" not in info:
        return str(name)
    distances = info["distance_down_track"]
    if not isinstance(distances, list) or len(distances) < len(info["detections"]):
        raise InputError(name, "`distance_down_track` is missing or too short", "choose a folder of the game's frames")
    return info["track"], *(round(distance) for distance in distances)


def moments_of_split(split_dir: Path) -> dict[str, Hashable]:
    """Read a split's frames: frame, e.g. `valid/00a00` -> `moment_key`.

    The frame of a row is `parse_image_file(row["image_file"])[0]`.
    """
    from .frame_info import read_frame_info  # deferred, see there
    from .rows import image_file, info_files, parse_image_file

    return {
        parse_image_file(image_file(path, 0))[0]: moment_key(read_frame_info(path), path)
        for path in info_files(split_dir)
    }


def places_of_images(images: Iterable[str | Path]) -> list[tuple[Hashable, Hashable]]:
    """Return the moment and the view of each image file; one without a valid frame is a moment of its own."""
    from .rows import parse_image_file  # deferred, see there

    moments, places = {}, []
    for image in map(Path, images):
        if image.parent not in moments:
            try:
                moments[image.parent] = moments_of_split(image.parent)
            except InputError:
                moments[image.parent] = {}
        try:
            frame, view = parse_image_file(f"{image.parent.name}/{image.name}")
        except InputError:
            frame, view = str(image), 0
        places.append((moments[image.parent].get(frame, (str(image.parent), frame)), view))
    return places


def bootstrap_by_moment(
    moments: Sequence[Hashable],
    items: Sequence[Hashable],
    groups: Sequence[Hashable],
    values: Iterable[float],
    seed: int = 0,
) -> dict[Hashable, Estimate]:
    """Average values by group with each moment counted once; intervals are drawn again by moment (bootstrap).

    Views of one moment are right or wrong together, so an interval that takes them for independent is too narrow.

    Args:
        moments: [n], the moment of each value, see `moment_key`.
        items: [n], what was measured in the moment, e.g. (view, question): a moment's values of one item, which come
            from duplicate frames, count as one, their mean. `range(n)` counts every value.
        groups: [n], e.g. the question's type.
        values: [n], e.g. whether an answer is right.

    Returns:
        group -> `Estimate`, in the order of their first appearance, and `MEAN` -> that of the mean of all groups.
    """
    import numpy as np  # deferred, so that a Python without it can say so in one line

    if not len(moments):
        return {}
    copies = Counter(keys := list(zip(moments, items, groups, strict=True)))
    row_of, column_of = ({key: i for i, key in enumerate(dict.fromkeys(keys))} for keys in (moments, groups))
    sums, weights = np.zeros((2, len(row_of), len(column_of)))
    for key, value in zip(keys, values, strict=True):
        cell = row_of[key[0]], column_of[key[2]]
        sums[cell] += value / copies[key]
        weights[cell] += 1 / copies[key]
    n = len(row_of)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), NUM_RESAMPLES)
    with np.errstate(invalid="ignore"):  # a group may be absent from a sample
        drawn = (counts @ sums) / (counts @ weights)  # [samples, groups]
    means = sums.sum(0) / weights.sum(0)
    columns = {group: (means[column], drawn[:, column]) for group, column in column_of.items()}
    columns[MEAN] = means.mean(), drawn.mean(1)
    return {
        group: Estimate(float(mean), *np.nanpercentile(sample, (2.5, 97.5)).tolist())
        for group, (mean, sample) in columns.items()
    }
