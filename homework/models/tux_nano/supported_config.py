"""Which settings of a base and an adapter are known: all others are left to transformers and peft."""

from collections.abc import Set

# A base's files. A setting of theirs has a known value, or says how large the model is, or has to do with training or
# generation alone.
FILES = {
    *("config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("processor_config.json", "chat_template.jinja"),
}
OF_NO_EFFECT = {
    *("architectures", "dtype", "transformers_version", "use_cache", "initializer_range", "attention_dropout"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "_pad_token_id", "pretraining_tp", "max_position_embeddings"),
    *("is_local", "local_files_only", "model_max_length", "auto_mapping", "base_model_name_or_path", "peft_version"),
    *("inference_mode", "lora_dropout", "megatron_core", "qalora_group_size", "revision", "task_type"),
}


def require(condition: bool) -> None:
    """Leave a base or an adapter to transformers and peft.

    Raises:
        ValueError: the condition does not hold.
    """
    if not condition:
        raise ValueError("not known here")


def require_known(settings: dict, expected: dict, sizes: Set[str] = frozenset()) -> None:
    """Settings that are to have a value have it, and all others are `sizes` or of no effect.

    Raises:
        ValueError: they are not, see `require`.
    """
    require(all(settings.get(name) == value for name, value in expected.items()))
    require(settings.keys() <= expected.keys() | sizes | OF_NO_EFFECT)
