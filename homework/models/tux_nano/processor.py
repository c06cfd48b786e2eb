"""The embedded base's tokenizer, prompts and pixels without transformers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from ...labels.scene import VIEW_SIZE
from ...utils.io import read_json
from ..images import MEAN, normalise, to_view_size
from .supported_config import require, require_known

# What must be in a base's files for the processor here to be that which transformers would make of them.
SPECIAL = {
    "bos_token": "<|im_start|>",
    "eos_token": "<end_of_utterance>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|im_end|>",
    "extra_special_tokens": ["<fake_token_around_image>", "<image>", "<end_of_utterance>"],
}
TOKENS = SPECIAL | {
    "backend": "tokenizers",
    "tokenizer_class": "TokenizersBackend",
    "processor_class": "TuxNanoProcessor",
    "clean_up_tokenization_spaces": False,
}
PROCESSOR = {
    "processor_class": "TuxNanoProcessor",
    "image_processor": {
        "image_processor_type": "TuxNanoImageProcessor",
        **dict.fromkeys(("do_convert_rgb", "do_normalize", "do_pad", "do_rescale"), True),
        **dict.fromkeys(("do_image_splitting", "do_resize"), False),
        **dict.fromkeys(("image_mean", "image_std"), [MEAN] * 3),
        "max_image_size": {"longest_edge": VIEW_SIZE[0]},
        "resample": Image.Resampling.LANCZOS,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": 1456},
    },
}
# SmolVLM's turn, `PROMPT`: `<|im_start|>User:<image>Q<end_of_utterance>`, newline, `Assistant:`
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
PROMPT = "<|im_start|>User:<image>{question}<end_of_utterance>\nAssistant:"


class QuickTokenizer:
    """What prompts, answers and CLIP need of a tokenizer of transformers."""

    def __init__(self, folder: Path):
        require_known(read_json(folder / "tokenizer_config.json"), TOKENS)
        self.backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.backend.no_truncation()
        self.backend.no_padding()
        there = {token.content for token in self.backend.get_added_tokens_decoder().values() if token.special}
        *names, extra = SPECIAL.values()
        require(there.issuperset([*names, *extra]))
        self.eos_token, self.pad_token_id = SPECIAL["eos_token"], self.backend.token_to_id(SPECIAL["pad_token"])

    def __call__(
        self,
        text: str | list[str],
        add_special_tokens: bool = True,
        padding: bool = True,
        return_tensors: str = "pt",
    ) -> dict:
        """The `input_ids` of a text; of several, as tensors [n, s] padded on the right, with their `attention_mask`."""
        if isinstance(text, str):
            return {"input_ids": self.backend.encode(text, add_special_tokens=add_special_tokens).ids}
        rows = [encoding.ids for encoding in self.backend.encode_batch(text, add_special_tokens=add_special_tokens)]
        length = max(map(len, rows))
        ids = torch.tensor([row + [self.pad_token_id] * (length - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}

    def convert_tokens_to_ids(self, token: str) -> int:
        """The id of a token."""
        return self.backend.token_to_id(token)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of ids."""
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)


class QuickProcessor:
    """What prompts and images need of a `TuxNanoProcessor`."""

    def __init__(self, folder: Path):
        config = read_json(folder / "processor_config.json")
        require_known(config, PROCESSOR, {"image_seq_len"})
        require((folder / "chat_template.jinja").read_bytes() == CHAT_TEMPLATE.encode())
        self.image_seq_len, self.tokenizer = config["image_seq_len"], QuickTokenizer(folder)

    def apply_chat_template(self, messages: list[dict], add_generation_prompt: bool) -> str:
        """The text of a chat of one message: an image and a question."""
        ((_, question),) = (message["content"] for message in messages)
        return PROMPT.format(question=question["text"])

    def __call__(self, text: str, images: Sequence[Image.Image]) -> dict:
        """The `input_ids` of a text about one image, as a batch of one."""
        edge = "<fake_token_around_image>"  # of Idefics3's
        image = f"{edge}<global-img>{'<image>' * self.image_seq_len}{edge}"
        return {"input_ids": [self.tokenizer(text.replace("<image>", image))["input_ids"]]}

    def image_processor(self, images: Sequence[Sequence[Image.Image]], return_tensors: str) -> dict[str, Tensor]:
        """Lists of one image -> `pixel_values` [n, 1, 3, 100, 150]."""
        return {"pixel_values": normalise(np.stack([to_view_size(image) for (image,) in images]))[:, None]}
