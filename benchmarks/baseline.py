"""The public pipeline, to measure ours against: the course's starter code as published solutions use it, in our words.

One question or caption a sample; every image opened again for each of them and first blown up, as SmolVLM's stock
processor does, before the model's own size is made of it; labels by masking the prompt; eager attention; the Trainer;
plain InfoNCE; answers by `generate`, 32 questions at a time in the order of the file. Base, LoRA, optimizer and dtype
are ours, so that the ratios are those of the pipelines alone; but CLIP pools the vision encoder's tokens and has LoRA
on both encoders, whatever ours reads in the image.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor

from homework.base_vlm import MAX_NEW_TOKENS
from homework.clip import with_lora
from homework.models.clip import CLIP
from homework.models.images import CLIP_SIZE
from homework.models.loading import load_adapter, load_processor, pick_device, pick_dtype, resolve_base
from homework.models.tux_nano import modeling_hf as nano_model  # noqa: F401 - transformers knows our base then
from homework.training.lora import add_lora
from homework.training.packing import IGNORE

LONGEST_EDGE = 2048  # `size.longest_edge` in the processor of SmolVLM-256M-Instruct
BATCH = 32


def load(base: str) -> tuple[nn.Module, "AutoProcessor"]:
    """(model with eager attention, processor) of a base, on the best device in its best dtype."""
    device = pick_device()
    model = AutoModelForImageTextToText.from_pretrained(
        resolve_base(base), dtype=pick_dtype(device), attn_implementation="eager"
    )
    return model.to(device), load_processor(base)


def blown_up(path: str) -> Image.Image:
    """An image file as the stock processor first makes it: its longest edge LONGEST_EDGE pixels, by Lanczos."""
    image = Image.open(path).convert("RGB")
    scale = LONGEST_EDGE / max(image.size)
    return image.resize([round(side * scale) for side in image.size], Image.Resampling.LANCZOS)


def as_stored(path: str) -> Image.Image:
    """An image file as it is."""
    return Image.open(path).convert("RGB")


def prompt(processor, question: str) -> str:
    """The chat turn that asks a question about an image."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


class OneQuestion(Dataset):
    """A question a sample.

    Args:
        rows: with image_path, question, answer.
    """

    def __init__(self, rows: Sequence[dict], processor, open_image: Callable = blown_up):
        self.rows, self.processor, self.open_image = rows, processor, open_image

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.rows[index]
        asked = prompt(self.processor, row["question"])
        text = f"{asked} {row['answer']}<end_of_utterance>"
        image = self.open_image(row["image_path"])
        item = dict(self.processor(text=text, images=[image], return_tensors="pt"))
        item = {name: value[0] for name, value in item.items()}
        answer = len(self.processor.tokenizer(text)["input_ids"]) - len(self.processor.tokenizer(asked)["input_ids"])
        labels = item["input_ids"].clone()
        labels[:-answer] = IGNORE
        return item | {"labels": labels}


def collate(items: list[dict[str, Tensor]], pad_id: int) -> dict[str, Tensor]:
    """Samples -> a batch, padded on the right to the longest."""
    fills = {"input_ids": pad_id, "attention_mask": 0, "labels": IGNORE}
    batch = {
        name: nn.utils.rnn.pad_sequence([item[name] for item in items], batch_first=True, padding_value=fill)
        for name, fill in fills.items()
    }
    return batch | {"pixel_values": torch.stack([item["pixel_values"] for item in items])}


def trainable(base: str, rank: int) -> tuple[nn.Module, "AutoProcessor"]:
    """(model with LoRA, processor)."""
    model, processor = load(base)
    return add_lora(model, rank, base), processor


def answering(base: str, adapter: str | Path) -> tuple[nn.Module, "AutoProcessor"]:
    """(model with trained LoRA, processor)."""
    model, processor = load(base)
    return load_adapter(model, adapter).eval(), processor


@torch.inference_mode()
def answer(model: nn.Module, processor, rows: Sequence[dict], open_image: Callable = blown_up) -> list[str]:
    """The greedy answers, BATCH questions at a time, in the order of the rows."""
    answers = []
    end = processor.tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        texts = [prompt(processor, row["question"]) for row in part]
        images = [[open_image(row["image_path"])] for row in part]
        inputs = processor(text=texts, images=images, padding=True, return_tensors="pt").to(model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        ids = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, eos_token_id=end)
        texts = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers += [text.strip() for text in texts]
    return answers


class OneCaption(Dataset):
    """A caption a sample, with the grader's crop of its image."""

    def __init__(self, rows: Sequence[dict], tokenizer):
        self.rows, self.tokenizer = rows, tokenizer

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.rows[index]
        image = as_stored(row["image_path"])
        scale = CLIP_SIZE / min(image.size)
        image = image.resize([int(side * scale) for side in image.size], Image.Resampling.BILINEAR)
        left, top = ((side - CLIP_SIZE) // 2 for side in image.size)
        pixels = np.asarray(image.crop((left, top, left + CLIP_SIZE, top + CLIP_SIZE)), dtype=np.float32)
        text = self.tokenizer(row["caption"] + self.tokenizer.eos_token, return_tensors="pt")
        return {
            "pixel_values": (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - 0.5) / 0.5,
            "input_ids": text["input_ids"][0],
            "attention_mask": text["attention_mask"][0],
            "labels": text["input_ids"][0],
        }


class InfoNCE(nn.Module):
    """Each image of a batch against each text, its own one true and all others false (CLIP, arXiv:2103.00020)."""

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.clip = clip

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict:
        """pixel_values [b, 3, 192, 192]; input_ids, attention_mask [b, s]. Returns `loss`."""
        vision, text, scale = self.clip(pixel_values, input_ids, attention_mask)
        logits = scale * vision @ text.T  # [b, b]
        own = torch.arange(len(logits), device=logits.device)
        return {"loss": (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2}


def trainable_clip(base: str, rank: int) -> tuple[InfoNCE, "AutoProcessor"]:
    """(CLIP with LoRA on a base's encoders and new projections, processor)."""
    model, processor = load(base)
    clip = CLIP(model.model.vision_model, model.model.text_model).to(model.device)
    return InfoNCE(with_lora(clip, rank, base)), processor
