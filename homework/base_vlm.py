"""BaseVLM: a generative vision-language model from a folder or the hub, with or without LoRA."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .models.generation import decode, prefill_image_prefix
from .models.loading import DEFAULT_BASE, load_for_inference, output_embedding
from .models.prompts import PromptTokens
from .models.shared_vocab import SharedRowHead
from .utils.images import open_image
from .utils.progress import progress_bar

MAX_NEW_TOKENS = 24  # the longest answer, `gran_paradiso_island`, has 9
IMAGE_BATCH_PIXELS, MAX_IMAGE_BATCH_SIZE = 2_000_000, 64  # 7 images of SmolVLM, 64 of TuxNano
QUESTION_BATCH_SIZE = 256


class BaseVLM:
    """A model with its processor, which answers questions about images.

    Args:
        checkpoint: a base (folder or hub name), or a PEFT folder, whose base is loaded first.
    """

    def __init__(self, checkpoint: str | Path = DEFAULT_BASE):
        self._set_parts(*load_for_inference(checkpoint))

    @classmethod
    def from_parts(cls, model: nn.Module, processor) -> "BaseVLM":
        """Wrap a model that is already loaded, e.g. one in training."""
        vlm = cls.__new__(cls)
        vlm._set_parts(model, processor)
        return vlm

    def _set_parts(self, model: nn.Module, processor) -> None:
        self.model, self.processor, self.tokens = model, processor, PromptTokens(processor)
        self.show_progress = False

    @property
    def device(self) -> torch.device:
        """The device of the model's weights."""
        return self.model.device

    def pixel_values(self, image_paths: Sequence[str | Path]) -> Tensor:
        """Read image files as [n, 1, 3, h, w] on the model's device and in its dtype."""
        images = [[open_image(path)] for path in image_paths]
        pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        return pixels.to(self.device, self.model.dtype)

    def answer(self, image_paths: Sequence[str | Path], questions: Sequence[str]) -> list[str]:
        """Return the greedy answer to each question about its image, in the order of the questions."""
        return self._answer(image_paths, questions, MAX_NEW_TOKENS, 0.0)

    def generate(
        self,
        image_paths: Sequence[str | Path],
        questions: Sequence[str],
        max_new_tokens: int = MAX_NEW_TOKENS,
        num_return_sequences: int = 1,
        temperature: float = 0.0,
    ) -> list[list[str]]:
        """Return `num_return_sequences` answers to each question; a temperature above 0 samples."""
        n = num_return_sequences
        paths, repeated = ([item for item in items for _ in range(n)] for items in (image_paths, questions))
        answers = self._answer(paths, repeated, max_new_tokens, temperature)
        return [answers[i : i + n] for i in range(0, len(answers), n)]

    @torch.inference_mode()
    def _answer(
        self, image_paths: Sequence[str | Path], questions: Sequence[str], max_new_tokens: int, temperature: float
    ) -> list[str]:
        """Answer in batches; an image is encoded once for all its questions."""
        if len(image_paths) != len(questions):
            raise ValueError(f"{len(image_paths)} images but {len(questions)} questions")
        rows_of_path: dict[str, list[int]] = {}
        for row, path in enumerate(image_paths):
            rows_of_path.setdefault(str(path), []).append(row)
        paths, answers = list(rows_of_path), [""] * len(questions)
        head = SharedRowHead(output_embedding(self.model))
        progress = progress_bar(total=len(questions), desc="answering", unit="question", shown=self.show_progress)
        num_pixels = self.pixel_values(paths[:1])[0].numel() // 3 if paths else 1
        batch_size = min(max(IMAGE_BATCH_PIXELS // num_pixels, 1), MAX_IMAGE_BATCH_SIZE)
        for start in range(0, len(paths), batch_size):
            chunk = paths[start : start + batch_size]
            cache = prefill_image_prefix(self.model, self.tokens, self.pixel_values(chunk))
            pairs = [(image, row) for image, path in enumerate(chunk) for row in rows_of_path[path]]
            # questions of similar length together, so that little is padded
            pairs.sort(key=lambda pair: len(self.tokens.question(questions[pair[1]])))
            for first in range(0, len(pairs), QUESTION_BATCH_SIZE):
                images, rows = zip(*pairs[first : first + QUESTION_BATCH_SIZE], strict=True)
                batch = [questions[row] for row in rows]
                texts = decode(self.model, head, self.tokens, cache, images, batch, max_new_tokens, temperature)
                for row, text in zip(rows, texts, strict=True):
                    answers[row] = text
                progress.update(len(rows))
        progress.close()
        return answers
