"""Write a randomly initialised SmolVLM-256M, for benchmarks and tests without a model hub."""

from collections.abc import Callable
from pathlib import Path

from homework.utils.cli import run

VOCAB_SIZE = 49280
# from SmolVLM-256M-Instruct's config.json
SMOLVLM_TEXT = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
}
SMOLVLM_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 512,
    "patch_size": 16,
}
# SmolVLM's chat template (Apache-2.0), without its line about missing end tokens.
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def smolvlm_config(text: dict, vision: dict, scale_factor: int):
    """Return an Idefics3 config with SmolVLM's token ids and, as there, an untied language head."""
    from transformers import Idefics3Config

    ids = {"bos_token_id": 1, "eos_token_id": 49279, "pad_token_id": 2}
    text = {"model_type": "llama", "vocab_size": VOCAB_SIZE, "max_position_embeddings": 2048, **ids, **text}
    return Idefics3Config(
        text_config=text,
        vision_config={"model_type": "idefics3_vision", **vision},
        image_token_id=49190,
        scale_factor=scale_factor,
        tie_word_embeddings=False,
        **ids,
    )


def save_smolvlm(folder: Path, config, prepare: Callable) -> None:
    """Save a randomly initialised model, changed by `prepare`, and its processor, configured as SmolVLM's."""
    import torch
    from transformers import Idefics3ForConditionalGeneration, Idefics3Processor, PreTrainedTokenizerFast
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    from homework.models.loading import DEFAULT_BASE

    torch.manual_seed(0)
    prepare(Idefics3ForConditionalGeneration(config)).save_pretrained(folder)
    tokenizer, image_size = PreTrainedTokenizerFast.from_pretrained(DEFAULT_BASE), config.vision_config.image_size
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 4 * image_size},
        max_image_size={"longest_edge": image_size},
    )
    seq_len = (image_size // config.vision_config.patch_size // config.scale_factor) ** 2
    processor = Idefics3Processor(images, tokenizer, image_seq_len=seq_len, chat_template=CHAT_TEMPLATE)
    processor.save_pretrained(folder)


def write(*, output: Path) -> None:
    """Write a base with SmolVLM-256M-Instruct's config and random weights, in bfloat16 like the published one.

    Example: python -m benchmarks.random_smolvlm --output runs/random_smolvlm

    Args:
        output: its folder.
    """
    config = smolvlm_config(SMOLVLM_TEXT, SMOLVLM_VISION, scale_factor=4)
    save_smolvlm(output, config, lambda model: model.bfloat16())


if __name__ == "__main__":
    run(write)
