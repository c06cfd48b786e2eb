"""The rows of the exported data set, one table per kind of trainer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from homework.labels.frame_info import read_scenes
from homework.labels.questions import captions, classify_caption, classify_question, qa_pairs
from homework.labels.rows import image_file
from homework.labels.scene import Scene
from homework.utils.images import open_checked

SETTINGS_FILE = "render.json"  # of a folder of rendered frames; it has their seed


@dataclass(frozen=True)
class View:
    """A view with its image file's bytes, scene and the columns that all tables share."""

    scene: Scene
    image: dict
    columns: dict


def read_views(frame_file: Path, generator: str, seed: int | None) -> Iterator[View]:
    """Yield the views of a frame.

    Raises:
        InputError: the frame is broken, or an image is missing or not an image.
    """
    for view, scene in read_scenes(frame_file):
        path = frame_file.parent / Path(image_file(frame_file, view)).name
        with open_checked(path):
            content = path.read_bytes()
        columns = {
            "frame": frame_file.name.removesuffix("_info.json"),
            "view": view,
            "track": scene.track,
            "kart_sizes": [
                {"kart": kart.name, "width": kart.box[2] - kart.box[0], "height": kart.box[3] - kart.box[1]}
                for kart in scene.karts
            ],
            "generator": generator,
            "seed": seed,
        }
        yield View(scene, {"bytes": content, "path": path.name}, columns)


def message_rows(view: View) -> Iterator[dict]:
    """Yield a conversation per question, as TRL and ms-swift read them."""
    for question, answer in qa_pairs(view.scene):
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        question_type = classify_question(question)
        yield {"images": [view.image], "messages": messages, "question_type": question_type, **view.columns}


def text_rows(view: View) -> Iterator[dict]:
    """Yield the view with all its questions, as FineVision stores them and nanoVLM reads them."""
    pairs = list(qa_pairs(view.scene))
    texts = [{"user": question, "assistant": answer} for question, answer in pairs]
    question_types = [classify_question(question) for question, _ in pairs]
    yield {"images": [view.image], "texts": texts, "question_types": question_types, **view.columns}


def caption_rows(view: View) -> Iterator[dict]:
    """Yield an image-text pair per true caption."""
    for caption in captions(view.scene):
        yield {"image": view.image, "text": caption, "caption_type": classify_caption(caption), **view.columns}


SUBSETS: dict[str, Callable[[View], Iterator[dict]]] = {
    "messages": message_rows,
    "texts": text_rows,
    "captions": caption_rows,
}


def types_in(row: dict) -> Sequence[str]:
    """Return the question or caption types of a row of any subset."""
    return row.get("question_types") or [row.get("question_type") or row["caption_type"]]


def features(subset: str):
    """Return a subset's columns as `datasets.Features`."""
    from datasets import Features, Image, List, Value

    text = Value("string")
    own = {
        "messages": {
            "images": List(Image()),
            "messages": List({"role": text, "content": text}),
            "question_type": text,
        },
        "texts": {
            "images": List(Image()),
            "texts": List({"user": text, "assistant": text}),
            "question_types": List(text),
        },
        "captions": {"image": Image(), "text": text, "caption_type": text},
    }
    sizes = List({"kart": text, "width": Value("int32"), "height": Value("int32")})
    shared = {"frame": text, "view": Value("int32"), "track": text, "kart_sizes": sizes, "generator": text}
    return Features(own[subset] | shared | {"seed": Value("int64")})
