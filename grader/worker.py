"""Run one model of a bundle in a sandboxed process: a job in the first argument, answers on stdout.

`runner.py` starts it as a script, without points or right answers; `homework` is the bundle's here. As it may run in
another Python environment, it imports the standard library only, and once in the sandbox what models need. Stdin is the
filter of system calls. It writes lines of JSON: `{"unenforced": [...], "readable": [...]}` for a job without a part;
else `{"num_parameters": n}`, then `{"records": [...]}`, or `{"error": "..."}` in place of either. The bundle's code can
change anything here, so `runner.py` trusts none of it.
"""

import contextlib
import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path, PurePath

EVAL_SPLIT = "valid_grader"
COURSE_MAX_SAMPLES = 128  # the course's grader benchmarks at most this many
MAX_PARAMETERS = 300_000_000
CLIP_SIZE = 192
MEAN = STD = 0.5
IMPORTS_TORCH = re.compile(rb"^(import|from) torch\b", re.MULTILINE)
MAX_ANSWER_CHARS = 10_000  # right answers have fewer than 30


class StepError(Exception):
    """Report in one line which step of the bundle failed, and why."""


@contextlib.contextmanager
def wrap_errors(step: str) -> Iterator[None]:
    """Turn whatever a bundle's code raises, `exit` included, into a `StepError` that names the step."""
    try:
        yield
    except StepError:
        raise
    except BaseException as error:
        text = " ".join(str(error).split())[:300]
        text = f"{step}: {type(error).__name__}" + (f": {text}" if text else "")
        if is_foreign_import_error(error):
            text = f"{text[:180]}; not the bundle's fault: the environment of {sys.executable} lacks it, so install it "
            text += "there, or grade with --python of the course's environment"
        raise StepError(text) from None


def is_foreign_import_error(error: BaseException | None) -> bool:
    """Return whether a module, or a name in it, could not be imported that is not the bundle's own."""
    while isinstance(error, ImportError) and not error.name:
        error = error.__cause__ or error.__context__
    if not isinstance(error, ImportError):
        return False
    name, package = error.name.partition(".")[0], Path(sys.path[0], "homework")
    return name != package.name and not any(path.stem == name for path in package.rglob("*"))


def image_key(path: str) -> str:
    """Return a path relative to the data folder: `data/valid/00000_00_im.jpg` -> `valid/00000_00_im.jpg`."""
    return "/".join(PurePath(path).parts[-2:])


class RecordingVLM:
    """Wrap a VLM and record each question with its answer, whoever calls it."""

    def __init__(self, vlm):
        self._vlm = vlm
        self.records = []

    def __getattr__(self, name: str):
        return getattr(self._vlm, name)

    def answer(self, image_paths, questions, *args, **kwargs) -> list[str]:
        """Return the VLM's own answers."""
        given = iter(self._vlm.answer(image_paths, questions, *args, **kwargs))
        answers = list(islice(given, len(questions) + 1))  # bounded, as the iterator may be endless
        if len(answers) != len(questions):
            number = "more" if len(answers) > len(questions) else len(answers)
            raise StepError(f"vlm.answer: {number} answers to {len(questions)} questions")
        if not all(isinstance(answer, str) for answer in answers):
            raise StepError("vlm.answer: an answer is not a string")
        longest = max(map(len, answers), default=0)
        if longest > MAX_ANSWER_CHARS:
            raise StepError(f"vlm.answer: an answer of {longest:,} characters, more than {MAX_ANSWER_CHARS:,}")
        for path, question, answer in zip(image_paths, questions, answers, strict=True):
            self.records.append({"image": image_key(str(path)), "query": question, "answer": answer})
        return answers


def answer_vlm(homework, vlm, job: dict) -> list[dict]:
    """Answer every question by the bundle's dataset and benchmark, as the course's grader does."""
    with wrap_errors("homework.data.VQADataset"):
        dataset = homework.data.VQADataset(EVAL_SPLIT)
        count = len(dataset)
    recorder = RecordingVLM(vlm)
    with wrap_errors("homework.data.benchmark"):
        homework.data.benchmark(recorder, dataset, max(count, COURSE_MAX_SAMPLES))
    return recorder.records


def clip_pixels(image):
    """Resize, crop and normalise an RGB image to float32 [1, 3, 192, 192], as torchvision does.

    It replaces the bundle's own transform, since the grader decides what a model sees. A test checks that it equals
    `homework.models.images.clip_pixels`.
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


def choose_caption(clip, tokenizer, image_path: str, candidates: list[str]) -> str:
    """Return the candidate whose text features are most similar to the image features."""
    import torch
    from PIL import Image

    device = next(iter(clip.parameters())).device
    with Image.open(image_path) as image:
        pixels = clip_pixels(image.convert("RGB")).to(device, torch.bfloat16)
    texts = tokenizer([text + tokenizer.eos_token for text in candidates], padding=True, return_tensors="pt")
    input_ids, attention_mask = texts["input_ids"].to(device), texts["attention_mask"].to(device)
    with torch.inference_mode():
        image_features, text_features, _ = clip(pixels, input_ids, attention_mask)
        similarity = image_features @ text_features.T
    if similarity.shape != (1, len(candidates)):
        raise StepError(f"clip: similarity of shape {tuple(similarity.shape)}, expected (1, {len(candidates)})")
    if not similarity.isfinite().all():
        raise StepError("clip: similarity is not finite")
    return candidates[int(similarity.argmax())]


def answer_clip(homework, clip, job: dict) -> list[dict]:
    """Choose a caption for each image in bfloat16, one image per call, as the course's grader does.

    It calls `clip.model`, not `clip`, which may be a PeftModel for feature extraction: its own `forward` gives the
    arguments other names (huggingface/peft, issue 2291).
    """
    with wrap_errors("homework.data.MultiChoiceQADataset"):
        dataset = homework.data.MultiChoiceQADataset(EVAL_SPLIT)
        rows = [dataset[index] for index in range(len(dataset))]
    from transformers import AutoTokenizer

    with wrap_errors(f"tokenizer {job['tokenizer']}"):
        tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
    records = []
    with wrap_errors("clip"):
        for row in rows:
            path, candidates = str(row["image_path"]), list(row["candidates"])
            choice = choose_caption(clip.model, tokenizer, path, candidates)
            records.append({"image": image_key(path), "query": candidates, "answer": choice})
    return records


PARTS: dict[str, tuple[str, Callable]] = {"vlm": ("load_vlm", answer_vlm), "clip": ("load_clip", answer_clip)}


def make_parameter_counter(package: Path) -> Callable[[object], int]:
    """Return a function that counts a model's parameters, made before the bundle's code can change torch.

    A model that is not a `torch.nn.Module` counts for itself. If no line of the package begins with an import of torch,
    every model does, and torch is not imported.
    """
    module_class, numel = (), None
    if any(IMPORTS_TORCH.search(file.read_bytes()) for file in package.rglob("*.py")):
        import torch

        module_class, numel = torch.nn.Module, torch.Tensor.numel

    def count(model) -> int:
        if not isinstance(model, module_class):
            return sum(parameter.numel() for parameter in model.parameters())
        waiting, modules, tensors = [model], set(), {}  # by id: shared tensors count once
        while waiting:
            module = waiting.pop()
            if id(module) not in modules:
                modules.add(id(module))
                content = vars(module)
                tensors |= {id(tensor): tensor for tensor in content["_parameters"].values() if tensor is not None}
                waiting += [child for child in content["_modules"].values() if child is not None]
        return sum(map(numel, tensors.values()))

    return count


def run_model(job: dict, send: Callable[[dict], None]) -> None:
    """Load the part's model, send its number of parameters, then its answers unless it is too large.

    Raises:
        StepError: a step of the bundle failed.
    """
    load, answer = PARTS[job["part"]]
    count = make_parameter_counter(Path(job["root"], "homework"))
    with wrap_errors("import homework"):
        homework = importlib.import_module("homework")
    with wrap_errors(f"homework.{load}()"):
        model = getattr(homework, load)()
        model.model.eval()
        num_parameters = int(count(model.model))
    send({"num_parameters": num_parameters})
    send({"records": answer(homework, model, job) if num_parameters <= MAX_PARAMETERS else []})


def redirect_stdout() -> int:
    """Return a new descriptor of the pipe to the grader, and drop all that the bundle prints."""
    channel, devnull = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    return channel


def enter_sandbox(job: dict) -> tuple[list[str], list[Path]]:
    """Start the sandbox; return the limits that this system does not enforce, and the readable paths."""
    program = sys.stdin.buffer.read()
    devnull = os.open(os.devnull, os.O_RDONLY)
    os.dup2(devnull, 0)
    here = str(Path(__file__).parent)  # never searched for a bundle's imports
    sys.path.insert(0, here)
    try:
        from sandbox import enforce_limits
    finally:
        sys.path.remove(here)
    return enforce_limits(job, program)


def main() -> None:
    """Run the job that the first argument describes."""
    job, channel = json.loads(sys.argv[1]), redirect_stdout()

    def send(message: dict) -> None:
        line = (json.dumps(message) + "\n").encode()
        while line:
            line = line[os.write(channel, line) :]

    try:
        with wrap_errors("the sandbox"):
            unenforced, readable = enter_sandbox(job)
            if unenforced != job["unenforced"] and job["part"]:
                raise StepError(f"the sandbox: {'; '.join(unenforced)}")  # other limits than were announced
        if job["part"] is None:
            send({"unenforced": unenforced, "readable": list(map(str, readable))})
        else:
            sys.path.insert(0, job["root"])  # before any other folder with a `homework`
            with wrap_errors(job["part"]):
                run_model(job, send)
    except StepError as error:
        send({"error": str(error)})
    os._exit(0)  # threads and exit handlers of the bundle must not delay the exit


if __name__ == "__main__":
    main()
