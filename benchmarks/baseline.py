"""The baseline: the course's starter pipeline as published solutions use it, reimplemented.

Each sample is one question or caption; every sample opens its image again and, as SmolVLM's stock processor does,
upscales it before resizing it to the model's input; labels mask the prompt; logits are computed for all tokens; CLIP is
trained with InfoNCE; questions are answered 32 per batch in file order, each with its own image. Base model, LoRA,
optimizer and dtype are this repo's, so that ratios compare the pipelines alone; but CLIP pools vision tokens and has
LoRA on both encoders.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

from PIL import Image

from homework.labels.generate import RowsFn
from homework.labels.rows import image_file, info_files
from homework.labels.scene import build_scene
from homework.utils.images import open_image

LONGEST_EDGE_PX = 2048  # `size.longest_edge` of SmolVLM-256M-Instruct's processor
ANSWER_BATCH_SIZE = 32
IGNORED_LABEL = -100  # of torch's cross entropy


def write_pairs(split_dir: Path, file: str, rows: RowsFn) -> str:
    """Write a split's QA pairs by a plain loop that reads a frame's file again for each view; return the file."""
    pairs = []
    for path in info_files(split_dir):
        for view in range(len(json.loads(path.read_text())["detections"])):
            pairs += rows(build_scene(json.loads(path.read_text()), view), image_file(path, view))
    Path(file).write_text(json.dumps(pairs, indent=2))
    return file


def load_trained(base: str, adapter: str | Path) -> tuple:
    """Load (model with trained LoRA, not merged, and processor)."""
    from peft import PeftModel

    from homework.models.loading import load_base

    model, processor = load_base(base)
    return PeftModel.from_pretrained(model, str(adapter)).eval(), processor


def make_trainable_vlm(base: str, rank: int) -> tuple:
    """Make (training module with new LoRA, processor); the loss is computed over all tokens' logits."""
    from torch.nn.functional import cross_entropy

    from homework.models.loading import backbone, load_base, output_embedding
    from homework.training.lora import PeftTrainingModule, add_lora

    class BaselineVLM(PeftTrainingModule):
        def forward(self, input_ids, attention_mask, pixel_values, labels):
            hidden_states = backbone(self.base)(
                input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values
            ).last_hidden_state
            logits = hidden_states @ output_embedding(self.base).T  # [b, s, tokens]
            return {"loss": cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())}

    model, processor = load_base(base)
    return BaselineVLM(add_lora(model, rank, base)), processor


def make_trainable_clip(base: str, rank: int) -> tuple:
    """Make (training module of a CLIP with LoRA on both encoders and new projections, processor)."""
    import torch
    from torch.nn.functional import cross_entropy

    from homework.models.clip import CLIP
    from homework.models.loading import load_base
    from homework.training.clip_dataset import add_lora_to_clip
    from homework.training.lora import PeftTrainingModule

    class InfoNCE(PeftTrainingModule):
        """Each image's only positive in a batch is its own text (CLIP, arXiv:2103.00020)."""

        def forward(self, pixel_values, input_ids, attention_mask, labels):
            image_features, text_features, scale = self.peft(pixel_values, input_ids, attention_mask)
            logits = scale * image_features @ text_features.T  # [b, b]
            targets = torch.arange(len(logits), device=logits.device)
            return {"loss": (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2}

    model, processor = load_base(base)
    full = CLIP.from_vlm(model)
    clip = CLIP(full.vision_encoder, full.text_encoder).to(model.device)
    return InfoNCE(add_lora_to_clip(clip, rank, base)), processor


def open_upscaled(path: str) -> Image.Image:
    """Open an image and upscale its longest edge to LONGEST_EDGE_PX by Lanczos, as the stock processor does."""
    image = open_image(path)
    scale = LONGEST_EDGE_PX / max(image.size)
    return image.resize([round(edge * scale) for edge in image.size], Image.Resampling.LANCZOS)


def encode_question(row: dict, processor, open_file: Callable = open_upscaled) -> dict:
    """Encode a row with image_path, question and answer; labels mask all but the answer and its end token."""
    import torch

    from homework.models.prompts import PromptTokens

    tokens = PromptTokens(processor)
    prompt, answer = tokens.prefix + tokens.question(row["question"]), tokens.answer(row["answer"])
    pixels = processor.image_processor([[open_file(row["image_path"])]], return_tensors="pt")["pixel_values"][0]
    return {
        "input_ids": torch.tensor(prompt + answer),
        "attention_mask": torch.ones(len(prompt + answer), dtype=torch.long),
        "labels": torch.tensor([IGNORED_LABEL] * len(prompt) + answer),
        "pixel_values": pixels,
    }


def encode_caption(row: dict, processor) -> dict:
    """Encode a row with image_path and caption, with the grader's crop of the image."""
    from homework.models.images import clip_pixels

    text = processor.tokenizer([row["caption"] + processor.tokenizer.eos_token], return_tensors="pt")
    item = {name: text[name][0] for name in ("input_ids", "attention_mask")}
    return item | {"pixel_values": clip_pixels([open_image(row["image_path"])])[0], "labels": item["input_ids"]}


def encode_batch(rows: list[dict], encode: Callable, processor) -> dict:
    """Encode rows and pad them on the right to the longest."""
    import torch

    items = [encode(row, processor) for row in rows]
    batch = {"pixel_values": torch.stack([item["pixel_values"] for item in items])}
    for name, fill in ("input_ids", processor.tokenizer.pad_token_id), ("attention_mask", 0), ("labels", IGNORED_LABEL):
        tensors = [item[name] for item in items]
        batch[name] = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)
    return batch


def generate_answers(model, processor, rows: Sequence[dict], open_file: Callable = open_upscaled) -> list[str]:
    """Answer questions greedily, ANSWER_BATCH_SIZE at a time in the order of the rows, each with its own image."""
    import torch

    from homework.base_vlm import MAX_NEW_TOKENS
    from homework.models.generation import decode, prefill_image_prefix
    from homework.models.loading import output_embedding
    from homework.models.prompts import PromptTokens

    answers, tokens, weight = [], PromptTokens(processor), output_embedding(model)
    # the output layer over all tokens, in place of `SharedRowHead`
    head = SimpleNamespace(table=weight, argmax_token=lambda hidden_states: (hidden_states @ weight.T).argmax(-1))
    with torch.inference_mode():
        for start in range(0, len(rows), ANSWER_BATCH_SIZE):
            batch = rows[start : start + ANSWER_BATCH_SIZE]
            images = [[open_file(row["image_path"])] for row in batch]
            pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
            cache = prefill_image_prefix(model, tokens, pixels.to(model.device, model.dtype))
            questions = [row["question"] for row in batch]
            answers += decode(model, head, tokens, cache, range(len(batch)), questions, MAX_NEW_TOKENS)
    return answers
