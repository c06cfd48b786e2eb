"""The VLM and CLIP behind the page: loaded while it is already open, asked one request at a time."""

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from homework.data import is_exact_match
from homework.utils.errors import InputError, first_line

from .library import View

VIEWS_AT_ONCE = 4  # while looking for wrong answers: about 0.2 s, which is what a question then waits at most
READY, LOADING = "ready", "loading"


class NotReadyError(RuntimeError):
    """A model that is still being loaded, or that is not there."""


class Models:
    """Two models that may be missing, and the answers to labelled questions so far.

    Attributes:
        state: of `vlm` and `clip`: `READY`, `LOADING`, or why there is none, in one line.
        answers: (split, key) -> question -> answer, for whole views.
    """

    def __init__(self, checkpoint: str, clip: str):
        self.names = {"vlm": checkpoint, "clip": clip}
        self.state = {"vlm": LOADING, "clip": LOADING}
        self.answers: dict[tuple[str, str], dict[str, str]] = {}
        self._models: dict[str, tuple] = {}
        self._lock, self._waiting, self._checked = threading.Lock(), 0, ""

    def load(self) -> None:
        """Load both; what fails is told by `state`. Takes seconds, so it is for a thread."""
        for name, load in (("vlm", _load_vlm), ("clip", _load_clip)):
            try:
                if not Path(self.names[name]).is_dir():
                    raise InputError(self.names[name], "no such checkpoint", _REMEDY[name])
                self._models[name] = load(self.names[name])
                self.state[name] = READY
            except Exception as error:  # no memory left, above all: the page is to say so
                self.state[name] = str(error) if isinstance(error, InputError) else first_line(error)

    def ask(self, view: View, question: str) -> tuple[str, float]:
        """(answer, the model's probability of it, 0 to 1).

        Raises:
            NotReadyError: no VLM.
            InputError: the image is missing or broken.
        """
        with self._model("vlm") as (vlm,):
            from ..likelihood import probabilities

            path = str(view.path)
            (answer,) = vlm.answer([path], [question])
            return answer, probabilities(vlm, {path: [(question, answer)]})[path][0]

    def answer_labelled(self, split: str, view: View) -> dict[str, str]:
        """Question -> answer for all questions that the view's labels answer.

        Raises:
            NotReadyError: no VLM.
            InputError: the image is missing or broken.
        """
        if (split, view.key) not in self.answers:
            with self._model("vlm") as (vlm,):
                self._answer(vlm, split, [view])
        return self.answers[split, view.key]

    def _answer(self, vlm, split: str, views: Sequence[View]) -> None:
        asked = [(view, question) for view in views for question, _ in view.pairs]
        answers = vlm.answer([view.path for view, _ in asked], [question for _, question in asked])
        found = defaultdict(dict, {view.key: {} for view in views})
        for (view, question), answer in zip(asked, answers, strict=True):
            found[view.key][question] = answer
        self.answers.update({(split, key): answered for key, answered in found.items()})

    def compare(self, view: View, texts: Sequence[str]) -> list[float]:
        """For each text how likely it is true of the image, 0 to 1, by CLIP.

        Raises:
            NotReadyError: no CLIP.
            InputError: the image is missing or broken.
        """
        with self._model("clip") as (clip, tokenizer):
            import torch

            from homework.clip import tokenize
            from homework.models.images import clip_pixels
            from homework.models.loading import unwrap
            from homework.utils.images import open_image

            base = unwrap(clip)
            device = next(base.parameters()).device
            with torch.inference_mode():
                encoded = {name: values.to(device) for name, values in tokenize(texts, tokenizer).items()}
                vision, text, scale = base(clip_pixels([open_image(view.path)]).to(device), **encoded)
                return (scale * vision @ text.T + base.logit_bias)[0].sigmoid().tolist()

    def check(self, split: str, views: dict[str, View]) -> None:
        """Answer all labelled questions of a split, a few views at a time; another split's turn ends this one's.

        Raises:
            NotReadyError: no VLM.
        """
        with self._model("vlm"):
            pass
        if self._checked != split:
            self._checked = split
            threading.Thread(target=self._check, args=(split, views), daemon=True).start()

    def stop_checking(self) -> None:
        """End `check` after the views that are being asked about; what was found is kept."""
        self._checked = ""

    def _check(self, split: str, views: dict[str, View]) -> None:
        left = [view for key, view in views.items() if (split, key) not in self.answers]
        (vlm,) = self._models["vlm"]
        for start in range(0, len(left), VIEWS_AT_ONCE):
            while self._waiting:
                time.sleep(0.005)
            if self._checked != split:
                return
            with self._lock:
                self._answer_readable(vlm, split, left[start : start + VIEWS_AT_ONCE])
        self._checked = ""

    def _answer_readable(self, vlm, split: str, views: Sequence[View]) -> None:
        """As `_answer`; of views without an image the others."""
        try:
            self._answer(vlm, split, views)
        except InputError:
            for view in views:
                with contextlib.suppress(InputError):
                    self._answer(vlm, split, [view])

    def wrong(self, split: str, views: dict[str, View]) -> tuple[list[str], int]:
        """(the keys of views with a wrong answer, how many views have answers), so far."""
        known = {key: self.answers[split, key] for key in views if (split, key) in self.answers}
        wrong = [
            key
            for key, answers in known.items()
            if any(not is_exact_match(answers[question], truth) for question, truth in views[key].pairs)
        ]
        return wrong, len(known)

    @contextlib.contextmanager
    def _model(self, name: str) -> Iterator[tuple]:
        """A model for one request, before any checking of a split goes on."""
        if self.state[name] != READY:
            state = self.state[name]
            raise NotReadyError("the model is still being loaded" if state == LOADING else state)
        self._waiting += 1
        try:
            with self._lock:
                yield self._models[name]
        finally:
            self._waiting -= 1


_REMEDY = {
    "vlm": "train one with `python -m homework.finetune train`, or start this page with `--checkpoint FOLDER`",
    "clip": "train one with `python -m homework.clip train`, or start this page with `--clip FOLDER`",
}


def _load_vlm(checkpoint: str) -> tuple:
    from homework.base_vlm import BaseVLM  # here, as torch takes seconds

    return (BaseVLM(checkpoint),)


def _load_clip(checkpoint: str) -> tuple:
    from homework.clip import load_with_tokenizer

    return load_with_tokenizer(Path(checkpoint).resolve())
