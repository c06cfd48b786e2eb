"""Run the VLM and CLIP behind the page: loaded in the background, one request at a time."""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

from fastapi import HTTPException

from homework.data import is_exact_match
from homework.labels.game import KARTS
from homework.labels.questions import CAPTIONS, QUESTIONS, classify_question
from homework.utils.errors import InputError, first_line

from ..answers import check_view
from .library import ViewEntry
from .listing import Answer

CHECK_BATCH_SIZE = 4  # views per batch of the search for wrong answers: about 0.3 s, the longest a request then waits
READY, LOADING = "ready", "loading"
REMEDIES = {
    "vlm": "train one with `python -m homework.finetune train`, or start this page with `--checkpoint FOLDER`",
    "clip": "train one with `python -m homework.clip train`, or start this page with `--clip FOLDER`",
}


class Models:
    """Two models, each of which may be missing, and a cache of answers.

    Attributes:
        state: part -> `READY`, `LOADING`, or in one line why it could not be loaded; parts are `vlm` and `clip`.
        answers: split -> key -> the answers about a view.
        checked_split: the split whose questions are being answered in the background, or an empty string.
    """

    def __init__(self, vlm: str = "vlm", clip: str = "clip"):
        self.checkpoints = {"vlm": vlm, "clip": clip}
        self.state = {"vlm": LOADING, "clip": LOADING}
        self.answers: dict[str, dict[str, list[Answer]]] = {}
        self._models: dict[str, tuple] = {}
        self._familiarity = None  # loaded for the first upload
        self.checked_split = ""
        self._lock, self._num_waiting = threading.Lock(), 0

    def load(self) -> None:
        """Load both models, which takes seconds; `state` reports failures."""
        for part in self.state:
            try:
                from homework.base_vlm import BaseVLM  # imports torch, which takes seconds
                from homework.clip import load_with_tokenizer
                from homework.models.loading import checkpoint_folder
                from homework.models.runs import check_is_finished

                folder = checkpoint_folder(self.checkpoints[part])
                check_is_finished(folder, part)
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

    def ask(self, view: ViewEntry, question: str) -> Answer:
        """Answer a question about a view."""
        with self._acquire("vlm") as (vlm,):
            return _answer(vlm, {view: [(question, dict(view.pairs).get(question))]})[view][0]

    def answer_all(self, split: str, view: ViewEntry) -> list[Answer]:
        """Answer all questions about a view: those that its labels answer, or those of `questions_about_upload`."""
        answers = self.answers.setdefault(split, {})
        if view.key not in answers:
            pairs = view.pairs or self.questions_about_upload(view)
            with self._acquire("vlm") as (vlm,):
                answers[view.key] = _answer(vlm, {view: pairs})[view]
        return answers[view.key]

    def questions_about_upload(self, view: ViewEntry) -> list[tuple[str, None]]:
        """List the questions of all types; those about another kart name the one that CLIP most likely recognises."""
        kart = self._find_other_kart(view) if self.state["clip"] == READY else None
        return [(row.template.format(kart=kart), None) for row in QUESTIONS if kart or "{kart}" not in row.template]

    def _find_other_kart(self, view: ViewEntry) -> str:
        """Return the kart of the most probable caption about a kart beside the ego kart."""
        templates = [row.template for row in CAPTIONS if row.caption_type == "relation"]
        karts = [kart for kart in KARTS for _ in templates]
        probabilities = self.compare(view, [template.format(kart) for kart in KARTS for template in templates])
        return max(zip(probabilities, karts, strict=True))[1]

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

    def is_unfamiliar(self, view: ViewEntry) -> bool | None:
        """Return whether an image is unlike the game's frames; None if there are no statistics of the bundled base."""
        with self._acquire("vlm"):
            if self._familiarity is None:
                from .familiarity import Familiarity

                self._familiarity = Familiarity.load()
            return self._familiarity.is_unfamiliar(view.path) if self._familiarity else None

    def start_check(self, split: str, views: Mapping[str, ViewEntry]) -> None:
        """Answer all labelled questions of a split in the background; replaces another split's search."""
        with self._acquire("vlm"):
            pass
        if self.checked_split != split:
            self.checked_split = split
            threading.Thread(target=self._check, args=(split, views), daemon=True).start()

    def stop_check(self) -> None:
        """End the search after its current batch; its answers are kept."""
        self.checked_split = ""

    def _check(self, split: str, views: Mapping[str, ViewEntry]) -> None:
        answers = self.answers.setdefault(split, {})
        remaining = [view for key, view in views.items() if key not in answers]
        (vlm,) = self._models["vlm"]
        for start in range(0, len(remaining), CHECK_BATCH_SIZE):
            while self._num_waiting:
                time.sleep(0.005)
            if self.checked_split != split:
                return
            batch = remaining[start : start + CHECK_BATCH_SIZE]
            with self._lock:
                try:
                    found = _answer(vlm, {view: view.pairs for view in batch})
                except InputError:  # an unreadable image: answer the others one by one
                    found = {}
                    for view in batch:
                        with contextlib.suppress(InputError):
                            found |= _answer(vlm, {view: view.pairs})
            answers.update((view.key, rows) for view, rows in found.items())
        self.checked_split = ""


def _answer(vlm, questions: Mapping[ViewEntry, Sequence[tuple[str, str | None]]]) -> dict[ViewEntry, list[Answer]]:
    """Answer questions, each given with its true answer or None; answers about a view are compared with each other."""
    from homework.training.likelihood import compute_probabilities

    rows = [(view, *pair) for view, pairs in questions.items() for pair in pairs]
    texts = vlm.answer([str(view.path) for view, _, _ in rows], [question for _, question, _ in rows])
    asked: dict[str, list[tuple[str, str]]] = {}
    for (view, question, _), text in zip(rows, texts, strict=True):
        asked.setdefault(str(view.path), []).append((question, text))
    found, answers = compute_probabilities(vlm, asked), {view: [] for view in questions}
    for (view, question, truth), text in zip(rows, texts, strict=True):
        correct = None if truth is None else is_exact_match(text, truth)
        confidence = found[str(view.path)][question, text]
        answers[view].append(Answer(question, classify_question(question), truth, text, confidence, correct))
    for given in answers.values():
        for name, holds, involved in check_view(given) if len(given) > 1 else ():
            for answer in given:
                if not holds and answer.question in involved:
                    answer.contradictions.append(name)
    return answers
