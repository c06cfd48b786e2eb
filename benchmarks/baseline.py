"""The baseline: the course's starter pipeline as published solutions use it, reimplemented.

Each sample is one question or caption; every sample opens its image again and, as SmolVLM's stock processor does,
upscales it before resizing it to the model's input; labels mask the prompt; attention is eager; CLIP is trained with
InfoNCE; answers come from `generate`, 32 questions per batch in file order. Base model, LoRA, optimizer and dtype are
this repo's, so that ratios compare the pipelines alone; but CLIP pools vision tokens and has LoRA on both encoders.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from homework.labels.generate import RowsFn
from homework.labels.rows import image_file, info_files
from homework.labels.scene import build_scene

LONGEST_EDGE_PX = 2048  # `size.longest_edge` of SmolVLM-256M-Instruct's processor
ANSWER_BATCH_SIZE = 32
IGNORED_LABEL = -100  # of torch's cross entropy


def write_pairs(split_dir: Path, file: str, rows: RowsFn) -> None:
    """Write a split's QA pairs with a plain loop that reads a frame's file again for each view."""
    pairs = []
    for path in info_files(split_dir):
        for view in range(len(json.loads(path.read_text())["detections"])):
            pairs += rows(build_scene(json.loads(path.read_text()), view), image_file(path, view))
    Path(file).write_text(json.dumps(pairs, indent=2))


def load_eager(base: str) -> tuple:
    """Load (model with eager attention, processor) of a base onto the best device in its best dtype."""
    from transformers import AutoModelForImageTextToText

    from homework.models.loading import load_processor, pick_device, pick_dtype, resolve_base
    from homework.models.tux_nano import modeling_hf  # noqa: F401 - registers TuxNano with transformers

    device = pick_device()
    model = AutoModelForImageTextToText.from_pretrained(
        resolve_base(base), dtype=pick_dtype(device), attn_implementation="eager"
    )
    return model.to(device), load_processor(base)


def load_trained(base: str, adapter: str | Path) -> tuple:
    """Load (model with trained LoRA, processor)."""
    from homework.models.loading import load_adapter

    model, processor = load_eager(base)
    return load_adapter(model, adapter).eval(), processor


def make_trainable_vlm(base: str, rank: int) -> tuple:
    """Make (training module with new LoRA, processor)."""
    from homework.training.lora import PeftTrainingModule, add_lora

    class BaselineVLM(PeftTrainingModule):
        def forward(self, input_ids, attention_mask, pixel_values, labels):
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values}
            return self.peft(**inputs, labels=labels)

    model, processor = load_eager(base)
    return BaselineVLM(add_lora(model, rank, base)), processor


def make_trainable_clip(base: str, rank: int) -> tuple:
    """Make (training module of a CLIP with LoRA on both encoders and new projections, processor)."""
    import torch
    from torch.nn.functional import cross_entropy

    from homework.clip import with_lora
    from homework.models.clip import CLIP
    from homework.training.lora import PeftTrainingModule

    class InfoNCE(PeftTrainingModule):
        """Each image's only positive in a batch is its own text (CLIP, arXiv:2103.00020)."""

        def forward(self, pixel_values, input_ids, attention_mask, labels):
            image_features, text_features, scale = self.peft(pixel_values, input_ids, attention_mask)
            logits = scale * image_features @ text_features.T  # [b, b]
            targets = torch.arange(len(logits), device=logits.device)
            return {"loss": (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2}

    model, processor = load_eager(base)
    clip = CLIP(model.model.vision_model, model.model.text_model).to(model.device)
    return InfoNCE(with_lora(clip, rank, base)), processor


def open_native(path: str) -> Image.Image:
    """Open an image at its stored size."""
    return Image.open(path).convert("RGB")


def open_upscaled(path: str) -> Image.Image:
    """Open an image and upscale its longest edge to LONGEST_EDGE_PX by Lanczos, as the stock processor does."""
    image = open_native(path)
    scale = LONGEST_EDGE_PX / max(image.size)
    return image.resize([round(edge * scale) for edge in image.size], Image.Resampling.LANCZOS)


def format_prompt(processor, question: str) -> str:
    """Format the chat turn that asks a question about an image."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def encode_question(row: dict, processor, open_image: Callable = open_upscaled) -> dict:
    """Encode a row with image_path, question and answer; labels mask all but the answer and its end token."""
    prompt, tokenizer = format_prompt(processor, row["question"]), processor.tokenizer
    text = f"{prompt} {row['answer']}<end_of_utterance>"
    item = processor(text=text, images=[open_image(row["image_path"])], return_tensors="pt")
    item = {name: value[0] for name, value in item.items()}
    labels = item["input_ids"].clone()
    labels[: len(tokenizer(prompt)["input_ids"]) - len(tokenizer(text)["input_ids"])] = IGNORED_LABEL
    return item | {"labels": labels}


def encode_caption(row: dict, processor) -> dict:
    """Encode a row with image_path and caption, with the grader's crop of the image."""
    from homework.models.images import clip_pixels

    text = processor.tokenizer(row["caption"] + processor.tokenizer.eos_token, return_tensors="pt")
    item = {name: text[name][0] for name in ("input_ids", "attention_mask")}
    return item | {"pixel_values": clip_pixels([open_native(row["image_path"])])[0], "labels": item["input_ids"]}


def encode_batch(rows: list[dict], encode: Callable, processor) -> dict:
    """Encode rows and pad them on the right to the longest."""
    import torch

    items = [encode(row, processor) for row in rows]
    batch = {"pixel_values": torch.stack([item["pixel_values"] for item in items])}
    for name, fill in ("input_ids", processor.tokenizer.pad_token_id), ("attention_mask", 0), ("labels", IGNORED_LABEL):
        tensors = [item[name] for item in items]
        batch[name] = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)
    return batch


def generate_answers(model, processor, rows: Sequence[dict], open_image: Callable = open_upscaled) -> list[str]:
    """Answer questions greedily, ANSWER_BATCH_SIZE at a time, in the order of the rows."""
    import torch

    from homework.base_vlm import MAX_NEW_TOKENS

    answers, end = [], processor.tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    for start in range(0, len(rows), ANSWER_BATCH_SIZE):
        batch = rows[start : start + ANSWER_BATCH_SIZE]
        texts = [format_prompt(processor, row["question"]) for row in batch]
        images = [[open_image(row["image_path"])] for row in batch]
        inputs = processor(text=texts, images=images, padding=True, return_tensors="pt").to(model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, eos_token_id=end)
        new_ids = ids[:, inputs["input_ids"].shape[1] :]
        answers += [text.strip() for text in processor.batch_decode(new_ids, skip_special_tokens=True)]
    return answers
