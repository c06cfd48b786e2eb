"""Token ids of a prompt: up to the image, a question, an answer."""

from collections.abc import Sequence
from functools import lru_cache

from PIL import Image

from ..labels.scene import VIEW_SIZE

END_TOKEN = "<end_of_utterance>"


class PromptTokens:
    """Token ids of a prompt's parts for one processor, each part tokenized once.

    A prompt is `prefix` (up to the last image token) + `question(q)` + `answer(a)`.

    Args:
        processor: of transformers' Idefics3, or TuxNano's.
    """

    def __init__(self, processor):
        self.tokenizer = processor.tokenizer
        before, after = chat_turn(processor, "\0").split("<image>")
        self._before_question, self._after_question = after.split("\0")
        blank = Image.new("RGB", VIEW_SIZE, "white")
        self.prefix: list[int] = processor(text=before + "<image>", images=[blank])["input_ids"][0]
        self.end: int = self.tokenizer.convert_tokens_to_ids(END_TOKEN)
        self.question = lru_cache(maxsize=65536)(self._question)
        self.answer = lru_cache(maxsize=65536)(self._answer)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _question(self, question: str) -> list[int]:
        return self._encode(self._before_question + question.strip() + self._after_question)

    def _answer(self, answer: str) -> list[int]:
        return [*self._encode(" " + answer), self.end]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids, up to the end of the turn."""
        ids = list(ids)
        ids = ids[: ids.index(self.end)] if self.end in ids else ids
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


def chat_turn(processor, question: str) -> str:
    """Return the chat turn that asks `question` about one image, ready for the answer."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
