"""Index the views to browse and store uploaded images; both are found by key, never by path."""

import io
import itertools
import math
import random
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from fastapi import HTTPException
from PIL import Image, ImageOps

from homework.labels.eval_sets import split_scenes
from homework.labels.frame_info import read_frame_info
from homework.labels.game import KARTS, TRACKS
from homework.labels.questions import CAPTIONS, captions, qa_pairs
from homework.labels.rows import parse_image_file
from homework.labels.scene import Scene
from homework.labels.visualize import boxes_for_drawing
from homework.utils.errors import InputError
from homework.utils.images import as_rgb

UPLOADS = "uploads"  # the split of uploaded images
MAX_UPLOAD_BYTES = 10_000_000
MAX_UPLOAD_PIXELS = 50_000_000  # decoded: a small file can contain an image that fills the memory
MAX_UPLOADS = 20  # the oldest is deleted
MAX_STORED_SIZE = (1200, 800)  # pixels; the models see far fewer, and the page sends no more
NUM_FALSE_CAPTIONS = 4
UPLOAD_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


@dataclass(frozen=True)
class ViewEntry:
    """An image with its labels; an upload has none."""

    path: Path
    scene: Scene | None = None

    @property
    def key(self) -> str:
        """The view's name in requests, unique in its split."""
        return self.path.stem.removesuffix("_im")

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """All (question, answer) of the view; empty for an upload."""
        return list(qa_pairs(self.scene)) if self.scene else []

    @property
    def min_side_px(self) -> float:
        """The short edge of the smallest kart's box, in pixels of the 150x100 view; infinite without karts."""
        return min((kart.min_side for kart in self.scene.karts), default=math.inf)


class Library:
    """All splits of a data folder, each read at its first use, and the uploads."""

    def __init__(self, data: Path):
        """Find the splits.

        Raises:
            InputError: no folder in `data` contains frames.
        """
        folders = sorted(folder for folder in data.glob("*") if folder.is_dir())
        self.splits = [folder.name for folder in folders if next(folder.glob("[!.]*_info.json"), None)]
        if not self.splits:
            raise InputError(data, "no split with frames in it", "run `python -m supertux use-sample`")
        self._data, self._lock, self._numbers = data, threading.Lock(), itertools.count(1)
        self._upload_dir = TemporaryDirectory(prefix="uploads-")
        self._views: dict[str, dict[str, ViewEntry]] = {UPLOADS: {}}

    def close(self) -> None:
        """Delete the uploads."""
        self._upload_dir.cleanup()

    def in_split(self, split: str) -> dict[str, ViewEntry]:
        """Return the views of a split by key.

        Raises:
            HTTPException: no such split.
            InputError: a frame of it is broken.
        """
        with self._lock:  # prevents two requests from reading the split twice
            if split not in self._views:
                if split not in self.splits:
                    raise HTTPException(404, "no such split")
                views = [
                    ViewEntry(self._data / image, scene) for image, scene in split_scenes(self._data, split).items()
                ]
                self._views[split] = {view.key: view for view in views}
            return self._views[split]

    def find(self, split: str, key: str) -> ViewEntry:
        """Return one view."""
        views = self.in_split(split)
        if key not in views:
            raise HTTPException(404, "no such view")
        return views[key]

    def add_upload(self, content: bytes) -> ViewEntry:
        """Decode an image and store it re-encoded, under a generated name.

        Raises:
            HTTPException: not an image of a known format, or a broken one, or more than `MAX_UPLOAD_BYTES` or
                `MAX_UPLOAD_PIXELS`.
        """
        image = _decode(content)
        with self._lock:
            key = f"{next(self._numbers)}"
            path = Path(self._upload_dir.name) / f"{key}.png"
            image.save(path)
            uploads = self._views[UPLOADS]
            uploads[key] = ViewEntry(path)
            for old in list(uploads)[:-MAX_UPLOADS]:
                uploads.pop(old).path.unlink(missing_ok=True)
            return uploads[key]


def _decode(content: bytes) -> Image.Image:
    if len(content) > MAX_UPLOAD_BYTES:
        raise HTTPException(413, f"too large: more than {MAX_UPLOAD_BYTES // 1_000_000} MB")
    try:
        with Image.open(io.BytesIO(content), formats=UPLOAD_FORMATS) as image:
            if image.width * image.height > MAX_UPLOAD_PIXELS:
                raise Image.DecompressionBombError
            upright = as_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:  # Pillow raises it too, above 179 million pixels
        raise HTTPException(413, f"too large: more than {MAX_UPLOAD_PIXELS // 1_000_000} million pixels") from None
    except Exception:  # Pillow's decoders raise many types of errors on broken files
        raise HTTPException(415, f"not a readable image; use a {', '.join(UPLOAD_FORMATS)} file") from None
    upright.thumbnail(MAX_STORED_SIZE, Image.Resampling.LANCZOS)
    return upright


def view_to_json(view: ViewEntry) -> dict:
    """Return a view's boxes, in pixels of the 150x100 view, questions and captions; an upload has no labels."""
    scene = view.scene
    boxes = []
    if scene:
        frame, number = parse_image_file(view.path.name)
        boxes = boxes_for_drawing(read_frame_info(view.path.with_name(f"{frame}_info.json")), number, scene)
    return {
        "key": view.key,
        "track": scene and scene.track,
        "boxes": [asdict(box) for box in boxes],
        "pairs": [{"question": question, "truth": truth} for question, truth in view.pairs],
        "captions": list(captions(scene)) if scene else [],
        "choices": choose_captions(view),
    }


def choose_captions(view: ViewEntry) -> list[str]:
    """Choose captions to compare: a true one and four false ones, in random order, the same each time.

    The false ones are of different caption types as far as there are any. For an upload, all are random.
    """
    rng, scene = random.Random(view.key), view.scene
    here = [kart.name for kart in scene.others] if scene and scene.others else KARTS
    values = {"ego": KARTS, "total": [str(number) for number in range(1, 10)], "track": TRACKS, "relation": here}
    true = list(captions(scene)) if scene else []
    chosen = [rng.choice(true)] if true else []
    types = list(values) * (NUM_FALSE_CAPTIONS + 1)
    while len(chosen) <= NUM_FALSE_CAPTIONS:
        caption_type = types.pop(0)
        templates = [row.template for row in CAPTIONS if row.caption_type == caption_type]
        texts = [template.format(value) for template in templates for value in values[caption_type]]
        false = [text for text in texts if text not in {*true, *chosen}]
        if false:
            chosen.append(rng.choice(false))
    rng.shuffle(chosen)
    return chosen
