"""Token ids of the chat prompt: up to the image, a question, an answer."""

from collections.abc import Sequence
from functools import lru_cache

from PIL import Image


class PromptTokens:
    """The token ids of a prompt's parts, for one processor. Each part is tokenised once.

    A prompt is `prefix` (up to the image's last token) + `question(q)` + `answer(a)`.
    """

    def __init__(self, processor):
        self.tokenizer = processor.tokenizer
        text = self._template(processor, "\0")
        before, after = text.split("<image>")
        self._before_question, self._after_question = after.split("\0")
        blank = Image.new("RGB", (150, 100), "white")
        self.prefix: list[int] = processor(text=before + "<image>", images=[blank])["input_ids"][0]
        self.end: int = self.tokenizer.convert_tokens_to_ids("<end_of_utterance>")
        self.question = lru_cache(maxsize=65536)(self._question)
        self.answer = lru_cache(maxsize=65536)(self._answer)

    @staticmethod
    def _template(processor, question: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _question(self, question: str) -> list[int]:
        return self._encode(self._before_question + question.strip() + self._after_question)

    def _answer(self, answer: str) -> list[int]:
        return [*self._encode(" " + answer), self.end]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids, up to the end of the turn."""
        ids = list(ids)
        ids = ids[: ids.index(self.end)] if self.end in ids else ids
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()
