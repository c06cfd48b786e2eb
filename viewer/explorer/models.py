"""Run the VLM and CLIP behind the page: loaded in the background, one request at a time."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence

from fastapi import HTTPException

from homework.data import is_exact_match
from homework.utils.errors import InputError, first_line

from .library import ViewEntry

CHECK_BATCH_SIZE = 4  # views per batch of the search for wrong answers: about 0.2 s, the longest a request then waits
READY, LOADING = "ready", "loading"
REMEDIES = {
    "vlm": "train one with `python -m homework.finetune train`, or start this page with `--checkpoint FOLDER`",
    "clip": "train one with `python -m homework.clip train`, or start this page with `--clip FOLDER`",
}


class Models:
    """Two models, each of which may be missing, and a cache of answers to labelled questions.

    Attributes:
        state: part -> `READY`, `LOADING`, or in one line why it could not be loaded; parts are `vlm` and `clip`.
        answers: (split, key) -> question -> answer, for whole views.
    """

    def __init__(self, vlm: str = "vlm", clip: str = "clip"):
        self.checkpoints = {"vlm": vlm, "clip": clip}
        self.state = {"vlm": LOADING, "clip": LOADING}
        self.answers: dict[tuple[str, str], dict[str, str]] = {}
        self._models: dict[str, tuple] = {}
        self._lock, self._num_waiting, self._checked_split = threading.Lock(), 0, ""

    def load(self) -> None:
        """Load both models, which takes seconds; `state` reports failures."""
        for part in self.state:
            try:
                from homework.base_vlm import BaseVLM  # imports torch, which takes seconds
                from homework.clip import load_with_tokenizer
                from homework.models.loading import checkpoint_folder

                folder = checkpoint_folder(self.checkpoints[part])
                if not folder.is_dir():
                    raise InputError(folder, "no such checkpoint", REMEDIES[part])
                self._models[part] = (BaseVLM(folder),) if part == "vlm" else load_with_tokenizer(folder.resolve())
                self.state[part] = READY
            except Exception as error:  # also out of memory, which the page must report
                self.state[part] = str(error) if isinstance(error, InputError) else first_line(error)

    @contextlib.contextmanager
    def _acquire(self, part: str) -> Iterator[tuple]:
        """Reserve a model for one request, with priority over the search for wrong answers.

        Raises:
            HTTPException: it is not loaded.
        """
        state = self.state[part]
        if state != READY:
            raise HTTPException(503, "the model is still loading" if state == LOADING else state)
        self._num_waiting += 1
        try:
            with self._lock:
                yield self._models[part]
        finally:
            self._num_waiting -= 1

    def ask(self, view: ViewEntry, question: str) -> tuple[str, float]:
        """Return the VLM's answer and its probability, 0 to 1."""
        with self._acquire("vlm") as (vlm,):
            from homework.training.likelihood import compute_probabilities

            path = str(view.path)
            (answer,) = vlm.answer([path], [question])
            return answer, compute_probabilities(vlm, {path: [(question, answer)]})[path][question, answer]

    def answer_labelled(self, split: str, view: ViewEntry) -> dict[str, str]:
        """Return question -> answer for all labelled questions about a view."""
        if (split, view.key) not in self.answers:
            with self._acquire("vlm") as (vlm,):
                self._answer(vlm, split, [view])
        return self.answers[split, view.key]

    def _answer(self, vlm, split: str, views: Sequence[ViewEntry]) -> None:
        rows = [(view, question) for view in views for question, _ in view.pairs]
        answers = iter(vlm.answer([view.path for view, _ in rows], [question for _, question in rows]))
        for view in views:
            self.answers[split, view.key] = {question: next(answers) for question, _ in view.pairs}

    def compare(self, view: ViewEntry, texts: Sequence[str]) -> list[float]:
        """Return for each text CLIP's probability, 0 to 1, that it is true of the image."""
        with self._acquire("clip") as (clip, tokenizer):
            import torch

            from homework.models.clip import tokenize
            from homework.models.images import clip_pixels
            from homework.models.loading import unwrap
            from homework.utils.images import open_image

            base = unwrap(clip)
            device = next(base.parameters()).device
            with torch.inference_mode():
                encoded = {name: values.to(device) for name, values in tokenize(texts, tokenizer).items()}
                image, text, scale = base(clip_pixels([open_image(view.path)]).to(device), **encoded)
                return (scale * image @ text.T + base.logit_bias)[0].sigmoid().tolist()

    def start_check(self, split: str, views: dict[str, ViewEntry]) -> None:
        """Answer all labelled questions of a split in the background; replaces another split's search."""
        with self._acquire("vlm"):
            pass
        if self._checked_split != split:
            self._checked_split = split
            threading.Thread(target=self._check, args=(split, views), daemon=True).start()

    def stop_check(self) -> None:
        """End the search after its current batch; its answers are kept."""
        self._checked_split = ""

    def _check(self, split: str, views: dict[str, ViewEntry]) -> None:
        remaining = [view for key, view in views.items() if (split, key) not in self.answers]
        (vlm,) = self._models["vlm"]
        for start in range(0, len(remaining), CHECK_BATCH_SIZE):
            while self._num_waiting:
                time.sleep(0.005)
            if self._checked_split != split:
                return
            batch = remaining[start : start + CHECK_BATCH_SIZE]
            with self._lock:
                try:
                    self._answer(vlm, split, batch)
                except InputError:  # an unreadable image: answer the others one by one
                    for view in batch:
                        with contextlib.suppress(InputError):
                            self._answer(vlm, split, [view])
        self._checked_split = ""

    def find_wrong(self, split: str, views: dict[str, ViewEntry]) -> tuple[list[str], int]:
        """Return the keys of views with a wrong answer so far, and the number of answered views."""
        answered = [(view, self.answers[split, key]) for key, view in views.items() if (split, key) in self.answers]
        wrong = [view.key for view, given in answered if not all(is_exact_match(given[q], a) for q, a in view.pairs)]
        return wrong, len(answered)
