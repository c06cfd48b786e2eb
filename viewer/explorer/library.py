"""The views that can be browsed, and pictures that were uploaded, each found by its key and never by a path."""

import io
import threading
from collections import Counter
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageOps

from homework.labels.frame_info import read_frame_info, read_scenes
from homework.labels.questions import captions, classify_question, qa_pairs
from homework.labels.rows import image_file, info_files
from homework.labels.scene import Scene
from homework.labels.visualize import boxes_for_drawing
from homework.utils.errors import InputError

UPLOADS = "uploads"  # the split of uploaded pictures
MAX_BYTES = 10_000_000  # of an upload
MAX_PIXELS = 50_000_000  # of an upload, decoded: a small file can hold a picture that fills the memory
MAX_UPLOADS = 20  # kept; the oldest goes
KEPT_SIZE = (1200, 800)  # pixels that an upload is reduced to; the models see far fewer
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


class TooLargeError(ValueError):
    """An upload of too many bytes or pixels."""


class NotAnImageError(ValueError):
    """An upload that Pillow can't read."""


@dataclass(frozen=True)
class View:
    """A picture with what is known of it; an upload has neither frame nor scene.

    Args:
        index: which view of the frame.
    """

    key: str
    path: Path
    info_path: Path | None = None
    index: int = 0
    scene: Scene | None = None

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """All (question, answer) of the view; none of an upload."""
        return list(qa_pairs(self.scene)) if self.scene else []


class Library:
    """All splits of a data folder, each read when it is first asked for, and the uploads."""

    def __init__(self, data: Path):
        """Find the splits.

        Raises:
            InputError: there is no folder with frames in `data`.
        """
        folders = sorted(folder for folder in data.glob("*") if folder.is_dir())
        self.splits = [folder.name for folder in folders if next(folder.glob("*_info.json"), None)]
        if not self.splits:
            raise InputError(data, "no split with frames in it", "run `python -m supertux use-sample`")
        self._data, self._lock, self._numbers = data, threading.Lock(), count(1)
        self._folder = TemporaryDirectory(prefix="uploads-")
        self._views: dict[str, dict[str, View]] = {UPLOADS: {}}

    def close(self) -> None:
        """Delete the uploads."""
        self._folder.cleanup()

    def views(self, split: str) -> dict[str, View]:
        """The views of a split, by key.

        Raises:
            KeyError: no such split.
            InputError: a broken frame in it.
        """
        with self._lock:  # so that two requests don't both read it
            if split not in self._views:
                if split not in self.splits:
                    raise KeyError(split)
                self._views[split] = dict(_read(self._data, split))
            return self._views[split]

    def find(self, split: str, key: str) -> View:
        """One view.

        Raises:
            KeyError: no such split, or no such view in it.
        """
        return self.views(split)[key]

    def add_upload(self, content: bytes) -> View:
        """Keep a picture, decoded and saved anew, under a name of our own.

        Raises:
            NotAnImageError: no picture of a known format, or a broken one.
            TooLargeError: more than `MAX_BYTES` or `MAX_PIXELS`.
        """
        picture = _decode(content)
        with self._lock:
            key = f"{next(self._numbers)}"
            path = Path(self._folder.name) / f"{key}.png"
            picture.save(path)
            uploads = self._views[UPLOADS]
            uploads[key] = View(key, path)
            for old in list(uploads)[:-MAX_UPLOADS]:
                uploads.pop(old).path.unlink(missing_ok=True)
            return uploads[key]


def _read(data: Path, split: str):
    for info_path in info_files(data / split):
        for index, scene in read_scenes(info_path):
            path = data / image_file(info_path, index)
            key = path.name.removesuffix("_im.jpg")
            yield key, View(key, path, info_path, index, scene)


def _decode(content: bytes) -> Image.Image:
    from homework.utils.images import as_rgb  # here, as torch takes seconds

    if len(content) > MAX_BYTES:
        raise TooLargeError(f"too large: more than {MAX_BYTES // 1_000_000} MB")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            picture.verify()
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:  # verify leaves nothing to read
            upright = as_rgb(ImageOps.exif_transpose(picture))
    except Image.DecompressionBombError:  # Pillow's own is raised too, for more than 179 million
        raise TooLargeError(f"too large: more than {MAX_PIXELS // 1_000_000} million pixels") from None
    except Exception:  # Pillow's decoders raise errors of many kinds on broken files
        raise NotAnImageError(f"not an image that can be read; take a {', '.join(FORMATS)} file") from None
    upright.thumbnail(KEPT_SIZE, Image.Resampling.LANCZOS)
    return upright


def choose(views: dict[str, View], track: str = "", kart: str = "", number: int | None = None) -> list[str]:
    """The keys of the views on a track, with a kart, with so many karts; an empty value takes all."""
    return [
        key
        for key, view in views.items()
        if (not track or view.scene.track == track)
        and (not kart or any(one.name == kart for one in view.scene.karts))
        and (number is None or len(view.scene.karts) == number)
    ]


def facets(views: dict[str, View], track: str = "", kart: str = "", number: int | None = None) -> dict[str, dict]:
    """What `choose` can take, each with how many views are left then: tracks, karts and numbers of karts.

    What is chosen of one thing leaves out values of the other two, not of its own: another can be taken in its place.
    """
    labelled = {key: view for key, view in views.items() if view.scene}

    def chosen(track: str, kart: str, number: int | None) -> list[Scene]:
        return [labelled[key].scene for key in choose(labelled, track, kart, number)]

    tracks = Counter(scene.track for scene in chosen("", kart, number))
    karts = Counter(name for scene in chosen(track, "", number) for name in {one.name for one in scene.karts})
    numbers = Counter(len(scene.karts) for scene in chosen(track, kart, None))
    return {name: dict(sorted(c.items())) for name, c in (("tracks", tracks), ("karts", karts), ("numbers", numbers))}


def describe(view: View) -> dict:
    """A view for the page: boxes in pixels of the 150x100 view, pairs and captions."""
    if view.scene is None:
        return {"key": view.key, "track": None, "ego": None, "boxes": [], "pairs": [], "captions": []}
    boxes = boxes_for_drawing(read_frame_info(view.info_path), view.index, view.scene)
    return {
        "key": view.key,
        "track": view.scene.track,
        "ego": view.scene.ego.name if view.scene.ego else None,
        "boxes": [{"role": box.role, "name": box.name, "box": box.corners} for box in boxes],
        "pairs": [{"question": q, "answer": a, "kind": classify_question(q)} for q, a in view.pairs],
        "captions": list(captions(view.scene)),
    }
