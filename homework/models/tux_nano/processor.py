"""TuxNano's processor: SmolVLM's tokens and chat turn, and images as 150x100 views."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from ...utils.errors import InputError, first_line
from ..images import normalise, to_view_size
from .config import RETRIEVE

TOKENIZER_FILE = "tokenizer.json"
EOS_TOKEN, PAD_TOKEN, IMAGE_TOKEN = "<end_of_utterance>", "<|im_end|>", "<image>"
# An image in a prompt, as Idefics3's processor writes it; and SmolVLM's chat turn, ready for the answer.
IMAGE_PROMPT = "<fake_token_around_image><global-img>{image_tokens}<fake_token_around_image>"
CHAT_TURN = "<|im_start|>User:<image>{question}<end_of_utterance>\nAssistant:"


class TuxNanoTokenizer:
    """The part of a transformers tokenizer that prompts, answers and captions need."""

    def __init__(self, folder: Path):
        file = folder / TOKENIZER_FILE
        try:
            self.backend = Tokenizer.from_file(str(file))
            self.backend.no_truncation()
            self.backend.no_padding()
        except Exception as error:  # tokenizers raises plain Exceptions
            raise InputError(file, f"not a tokenizer ({first_line(error)})", RETRIEVE) from None
        missing = [token for token in (EOS_TOKEN, PAD_TOKEN, IMAGE_TOKEN) if self.backend.token_to_id(token) is None]
        if missing:
            raise InputError(file, f"has no token {', '.join(missing)}", RETRIEVE)
        self.eos_token, self.pad_token_id = EOS_TOKEN, self.backend.token_to_id(PAD_TOKEN)

    def __call__(self, text: str | list[str], add_special_tokens: bool = True, **_) -> dict:
        """Return `input_ids` of a text; of several, tensors [n, s] padded on the right, with `attention_mask`."""
        if isinstance(text, str):
            return {"input_ids": self.backend.encode(text, add_special_tokens=add_special_tokens).ids}
        rows = [encoding.ids for encoding in self.backend.encode_batch(text, add_special_tokens=add_special_tokens)]
        length = max(map(len, rows))
        ids = torch.tensor([row + [self.pad_token_id] * (length - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}

    def convert_tokens_to_ids(self, token: str) -> int:
        """Return the id of a token."""
        return self.backend.token_to_id(token)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of ids."""
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)


class TuxNanoProcessor:
    """Make model inputs of images and questions; called as a processor of transformers is.

    Args:
        num_image_tokens: how many tokens an image becomes.
    """

    def __init__(self, folder: Path, num_image_tokens: int):
        self.tokenizer, self.num_image_tokens = TuxNanoTokenizer(folder), num_image_tokens

    def apply_chat_template(self, messages: list[dict], add_generation_prompt: bool) -> str:
        """Return the chat turn of one message, an image and a question."""
        ((_, question),) = (message["content"] for message in messages)
        return CHAT_TURN.format(question=question["text"])

    def __call__(self, text: str, images: Sequence[Image.Image]) -> dict:
        """Return the `input_ids` of a text about one image, as a batch of one."""
        image = IMAGE_PROMPT.format(image_tokens=IMAGE_TOKEN * self.num_image_tokens)
        return {"input_ids": [self.tokenizer(text.replace(IMAGE_TOKEN, image))["input_ids"]]}

    def image_processor(self, images: Sequence[Sequence[Image.Image | np.ndarray]], **_) -> dict[str, Tensor]:
        """Turn lists of one image each, PIL or uint8 [h, w, 3], into `pixel_values` [n, 1, 3, 100, 150]."""
        views = [to_view_size(image) for (image,) in images]
        return {"pixel_values": normalise(np.stack(views))[:, None]}
