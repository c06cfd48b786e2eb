"""Runs one of a bundle's models, in a process of its own that is shut in: a job in the arguments, answers on stdout.

It knows no points and no right answers, and `homework` is the bundle's here. `run.py` starts it as a script. It writes
lines of JSON: `{"missing": [...]}` for a job without a part; else `{"loaded": parameters}`, then `{"records": [...]}`
or `{"error": "..."}` in place of either. All that runs beside the bundle's code can be changed by it, so `run.py`
believes none of it.
"""

import contextlib
import importlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path, PurePath

CLIP_SIZE = 192
MEAN = STD = 0.5
IMPORTS_TORCH = re.compile(rb"^(import|from) torch\b", re.MULTILINE)
MAX_ANSWER = 10_000  # characters; the true ones have less than 30


class StepError(Exception):
    """One line: what of the bundle failed, and how."""


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Turn whatever a bundle's code raises, `exit` included, into a `StepError`."""
    try:
        yield
    except StepError:
        raise
    except BaseException as error:
        text = " ".join(str(error).split())[:300]
        raise StepError(f"{name}: {type(error).__name__}" + (f": {text}" if text else "")) from None


def image_key(path: str) -> str:
    """`.../data/valid/00000_00_im.jpg` -> `valid/00000_00_im.jpg`, wherever the data lies."""
    return "/".join(PurePath(path).parts[-2:])


class Recorder:
    """A VLM that keeps what it was asked and what it answered, whoever asks it."""

    def __init__(self, vlm):
        self._vlm = vlm
        self.records = []

    def __getattr__(self, name: str):
        return getattr(self._vlm, name)

    def answer(self, image_paths, questions, *args, **kwargs) -> list[str]:
        """The VLM's own answers."""
        given = iter(self._vlm.answer(image_paths, questions, *args, **kwargs))
        answers = list(islice(given, len(questions) + 1))  # no more: they may never end
        if len(answers) != len(questions):
            number = "more" if len(answers) > len(questions) else len(answers)
            raise StepError(f"vlm.answer: {number} answers to {len(questions)} questions")
        if not all(isinstance(answer, str) for answer in answers):
            raise StepError("vlm.answer: an answer that is no string")
        longest = max(map(len, answers), default=0)
        if longest > MAX_ANSWER:
            raise StepError(f"vlm.answer: an answer of {longest:,} characters, more than {MAX_ANSWER:,}")
        for path, question, answer in zip(image_paths, questions, answers, strict=True):
            self.records.append({"image": image_key(str(path)), "asked": question, "answer": answer})
        return answers


def answer_vlm(homework, vlm, job: dict) -> list[dict]:
    """The course's way: the bundle's dataset and the bundle's benchmark. It asks every question."""
    with step("homework.data.VQADataset"):
        dataset = homework.data.VQADataset(job["split"])
        count = len(dataset)
    recorder = Recorder(vlm)
    with step("homework.data.benchmark"):
        homework.data.benchmark(recorder, dataset, max(count, job["course_samples"]))
    return recorder.records


def clip_pixels(image):
    """An RGB image -> what torchvision's Resize, CenterCrop, ToTensor and Normalize make of it.

    The bundle's own transform is not asked, since a grader decides what a model sees. The same as
    `homework.models.images.clip_pixels`, which a test compares it with.

    Returns:
        float32 [1, 3, 192, 192].
    """
    import numpy as np
    import torch
    from PIL import Image

    short = min(image.size)
    # Resize truncates the long side; CenterCrop rounds the offset
    width, height = (CLIP_SIZE if side == short else int(CLIP_SIZE * side / short) for side in image.size)
    left, top = round((width - CLIP_SIZE) / 2), round((height - CLIP_SIZE) / 2)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    crop = np.array(image.crop((left, top, left + CLIP_SIZE, top + CLIP_SIZE)))
    return (torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255 - MEAN) / STD


def choose(clip, tokenizer, image_path: str, candidates: list[str]) -> str:
    """The candidate that the model finds most like the image."""
    import torch
    from PIL import Image

    device = next(iter(clip.model.parameters())).device
    with Image.open(image_path) as image:
        pixels = clip_pixels(image.convert("RGB")).to(device, torch.bfloat16)
    texts = tokenizer([text + tokenizer.eos_token for text in candidates], padding=True, return_tensors="pt")
    with torch.inference_mode():
        vision, text, _ = clip(pixels, texts["input_ids"].to(device), texts["attention_mask"].to(device))
        likeness = vision @ text.T
    if likeness.shape != (1, len(candidates)):
        raise StepError(f"clip: likeness of shape {tuple(likeness.shape)}, expected (1, {len(candidates)})")
    if not likeness.isfinite().all():
        raise StepError("clip: a likeness that is no finite number")
    return candidates[int(likeness.argmax())]


def answer_clip(homework, clip, job: dict) -> list[dict]:
    """The course's way: one image with its candidates at a time, in bfloat16."""
    with step("homework.data.MultiChoiceQADataset"):
        dataset = homework.data.MultiChoiceQADataset(job["split"])
        rows = [dataset[index] for index in range(len(dataset))]
    from transformers import AutoTokenizer

    with step(f"tokenizer {job['tokenizer']}"):
        tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
    records = []
    with step("clip"):
        for row in rows:
            path, candidates = str(row["image_path"]), list(row["candidates"])
            choice = choose(clip, tokenizer, path, candidates)
            records.append({"image": image_key(path), "asked": candidates, "answer": choice})
    return records


PARTS: dict[str, tuple[str, Callable]] = {"vlm": ("load_vlm", answer_vlm), "clip": ("load_clip", answer_clip)}


def parameter_counter(package: Path) -> Callable[[object], int]:
    """What counts a model's parameters, made before the bundle's code can change torch.

    Where no module of the bundle begins with importing torch, it isn't imported: a model of none counts for itself.
    """

    def ask(model) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    if not any(IMPORTS_TORCH.search(file.read_bytes()) for file in package.rglob("*.py")):
        return ask
    import torch

    kind, numel = torch.nn.Module, torch.Tensor.numel

    def count(model) -> int:
        if not isinstance(model, kind):
            return ask(model)
        waiting, seen, total = [model], set(), 0
        while waiting:
            module = vars(waiting.pop())
            for tensor in module["_parameters"].values():
                if tensor is not None and id(tensor) not in seen:  # a shared one counts once
                    seen.add(id(tensor))
                    total += numel(tensor)
            for child in module["_modules"].values():
                if child is not None and id(child) not in seen:
                    seen.add(id(child))
                    waiting.append(child)
        return total

    return count


def run(job: dict, say: Callable[[dict], None]) -> None:
    """Load the part's model and ask it everything, unless it is too large.

    Raises:
        StepError: what failed.
    """
    load, ask = PARTS[job["part"]]
    count = parameter_counter(Path(job["root"], "homework"))
    with step("import homework"):
        homework = importlib.import_module("homework")
    with step(f"homework.{load}()"):
        model = getattr(homework, load)()
        model.model.eval()
        parameters = int(count(model.model))
    say({"loaded": parameters})
    say({"records": ask(homework, model, job) if parameters <= job["max_parameters"] else []})


def take_stdout() -> int:
    """Keep the pipe to the parent under a new number and drop all that the bundle prints."""
    channel, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return channel


def shut_in(job: dict) -> list[str]:
    """Start the sandbox. Its modules lie beside this file, where nothing of a bundle is looked for.

    Returns:
        what this system does not enforce, a line each.
    """
    here = str(Path(__file__).parent)
    sys.path.insert(0, here)
    try:
        from sandbox import enforce
    finally:
        sys.path.remove(here)
    return enforce(job)


def main() -> None:
    """Do the job that the first argument describes."""
    job, channel = json.loads(sys.argv[1]), take_stdout()

    def say(message: dict) -> None:
        line = (json.dumps(message) + "\n").encode()
        while line:
            line = line[os.write(channel, line) :]

    try:
        with step("the sandbox"):
            missing = shut_in(job)
            if missing != job["missing"] and job["part"]:
                raise StepError(f"the sandbox: {'; '.join(missing)}")  # more than was announced
        if job["part"] is None:
            say({"missing": missing})
        else:
            sys.path.insert(0, job["root"])  # before anything else that could hold a `homework`
            tempfile.tempdir = os.getcwd()  # torch asks for its name on import; nothing can be written there either
            with step(job["part"]):
                run(job, say)
    except StepError as error:
        say({"error": str(error)})
    os._exit(0)  # no thread or exit handler of the bundle can hold us up


if __name__ == "__main__":
    main()
