"""BaseVLM: a generative vision-language model from a folder or the hub, with or without LoRA."""

import copy
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .models.loading import DEFAULT_BASE, load_for_inference, load_hf, unwrap
from .models.prompts import PromptTokens
from .models.shared_vocab import SharedRowHead
from .utils.images import open_image
from .utils.progress import progress_bar

if TYPE_CHECKING:
    from transformers import ProcessorMixin

MAX_NEW_TOKENS = 24  # the longest answer, `gran_paradiso_island`, takes 9
IMAGE_BATCH_SIZE = 64


class BaseVLM:
    """A model, its processor and how to ask it.

    Args:
        checkpoint: a base (folder or hub name) or a PEFT folder, whose base is loaded first.
    """

    def __init__(self, checkpoint: str | Path = DEFAULT_BASE):
        self._checkpoint = os.path.abspath(checkpoint) if os.path.isdir(checkpoint) else checkpoint
        self.model, self.processor = load_for_inference(checkpoint)
        self.tokens = PromptTokens(self.processor)
        self.show_progress = False

    @classmethod
    def from_parts(cls, model: nn.Module, processor) -> "BaseVLM":
        """A BaseVLM of a model that is already there, e.g. one in training."""
        vlm = cls.__new__(cls)
        vlm.model, vlm.processor, vlm.tokens, vlm.show_progress = model, processor, PromptTokens(processor), False
        vlm.stock = model, processor
        return vlm

    @cached_property
    def stock(self) -> tuple[nn.Module, "ProcessorMixin"]:
        """(model, processor) of transformers; `model` and `processor` may be others, which answer the same."""
        return load_hf(self._checkpoint)

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return self.model.device

    def format_prompt(self, question: str) -> str:
        """The chat turn that asks `question` about one image, ready for the answer."""
        return PromptTokens._template(self.processor, question)

    def pixel_values(self, image_paths: Sequence[str | Path]) -> Tensor:
        """Image files -> [n, 1, 3, h, w] on the model's device and in its dtype."""
        images = [[open_image(path)] for path in image_paths]
        pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        return pixels.to(self.device, self.model.dtype)

    @torch.inference_mode()
    def generate(
        self,
        image_paths: Sequence[str | Path],
        questions: Sequence[str],
        max_new_tokens: int = MAX_NEW_TOKENS,
        num_return_sequences: int = 1,
        temperature: float = 0.0,
    ) -> list[list[str]]:
        """transformers' own generation, batched and left-padded; a temperature above 0 samples.

        Its model is loaded at the first call, if it is not the one that answers.

        Returns:
            for each question, `num_return_sequences` texts.
        """
        model, processor = self.stock
        texts = [self.format_prompt(question.strip()) for question in questions]
        images = [[open_image(path)] for path in image_paths]
        inputs = processor(text=texts, images=images, padding=True, return_tensors="pt").to(model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        output = model.generate(
            **inputs,
            **sampling,
            max_new_tokens=max_new_tokens,
            num_return_sequences=num_return_sequences,
            eos_token_id=self.tokens.end,
            pad_token_id=processor.tokenizer.pad_token_id,
        )
        answers = [self.tokens.decode(row) for row in output[:, inputs["input_ids"].shape[1] :].tolist()]
        return [answers[i : i + num_return_sequences] for i in range(0, len(answers), num_return_sequences)]

    @torch.inference_mode()
    def answer(self, image_paths: Sequence[str | Path], questions: Sequence[str]) -> list[str]:
        """The greedy answer to each question on its image; an image is encoded once for all its questions.

        Returns:
            answers, in the order of the questions; the same as `generate` gives.
        """
        if len(image_paths) != len(questions):
            raise ValueError(f"{len(image_paths)} images but {len(questions)} questions")
        rows_of: dict[str, list[int]] = {}
        for row, path in enumerate(image_paths):
            rows_of.setdefault(str(path), []).append(row)
        paths, answers = list(rows_of), [""] * len(questions)
        vocabulary = SharedRowHead(self.model.get_output_embeddings().weight)
        progress = progress_bar(total=len(questions), desc="answering", unit="question", shown=self.show_progress)
        for start in range(0, len(paths), IMAGE_BATCH_SIZE):
            chunk = paths[start : start + IMAGE_BATCH_SIZE]
            cache = self._image_cache(self.pixel_values(chunk))
            rows = [(image, row) for image, path in enumerate(chunk) for row in rows_of[path]]
            # questions of about the same length together, so that little is padded
            rows.sort(key=lambda pair: len(self.tokens.question(questions[pair[1]])))
            for at in range(0, len(rows), 4 * IMAGE_BATCH_SIZE):
                part = rows[at : at + 4 * IMAGE_BATCH_SIZE]
                images, asked = [image for image, _ in part], [questions[row] for _, row in part]
                texts = self._decode_greedily(vocabulary, cache, images, asked)
                for (_, row), text in zip(part, texts, strict=True):
                    answers[row] = text
                progress.update(len(part))
        progress.close()
        return answers

    def _image_cache(self, pixel_values: Tensor):
        """Keys and values of the prompts' common start, one row an image."""
        prefix = torch.tensor([self.tokens.prefix] * len(pixel_values), device=self.device)
        mask = torch.ones_like(prefix)
        output = self._inner()(input_ids=prefix, attention_mask=mask, pixel_values=pixel_values, use_cache=True)
        return output.past_key_values

    def _inner(self) -> nn.Module:
        """The model below the language head, and below a possible PEFT wrapper."""
        return unwrap(self.model).model

    def _decode_greedily(
        self, vocabulary: SharedRowHead, cache, image_rows: Sequence[int], questions: Sequence[str]
    ) -> list[str]:
        """Answer `questions[i]` on the cached image `image_rows[i]`, all at once."""
        cache = copy.deepcopy(cache)
        cache.batch_select_indices(torch.tensor(image_rows, device=self.device))
        asked = [self.tokens.question(question) for question in questions]
        length, start = max(map(len, asked)), len(self.tokens.prefix)
        ids = torch.tensor([[self.tokens.end] * (length - len(a)) + a for a in asked], device=self.device)
        real = torch.tensor([[0] * (length - len(a)) + [1] * len(a) for a in asked], device=self.device)
        mask = torch.cat([real.new_ones(len(asked), start), real], dim=1)  # [rows, prefix + question]
        positions = (start + real.cumsum(1) - 1).clamp(min=0)
        answers: list[list[int]] = [[] for _ in asked]
        open_rows = list(range(len(asked)))  # whose answer goes on
        for _ in range(MAX_NEW_TOKENS):
            hidden = self._inner()(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            ).last_hidden_state
            token = vocabulary.argmax_token(hidden[:, -1])  # [open rows]
            for row, id_ in zip(open_rows, token.tolist(), strict=True):
                answers[row].append(id_)
            going = (token != self.tokens.end).nonzero()[:, 0]
            if not len(going):
                break
            if len(going) < len(token):
                cache.batch_select_indices(going)
                token, mask, positions = token[going], mask[going], positions[going]
                open_rows = [open_rows[i] for i in going.tolist()]
            ids, mask = token[:, None], torch.cat([mask, mask.new_ones(len(token), 1)], dim=1)
            positions = positions[:, -1:] + 1
        return [self.tokens.decode(row) for row in answers]
