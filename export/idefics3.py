"""Define the command `onnx`: a SmolVLM checkpoint as the ONNX files that transformers.js runs in a browser."""

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from homework.utils.errors import InputError
from homework.utils.io import read_json, write_json

from .common import check_replaceable, new_folder, require

logger = logging.getLogger(__name__)


class VisionGraph(nn.Module):
    """Map images of the vision encoder's size to image features."""

    outputs = ("image_features",)

    def __init__(self, model: nn.Module):
        super().__init__()
        vision, size = model.model.vision_model, model.config.vision_config.image_size
        self.patches, self.encoder = vision.embeddings.patch_embedding, vision.encoder
        self.norm, self.connector = vision.post_layernorm, model.model.connector
        # what a whole image's positions add; transformers computes them with loops that cannot be traced
        blank = torch.zeros(1, 3, size, size)
        side = size // model.config.vision_config.patch_size
        whole = torch.ones(1, side, side, dtype=torch.bool)
        embedded = vision.embeddings(pixel_values=blank, patch_attention_mask=whole)
        self.register_buffer("positions", embedded - self.patches(blank).flatten(2).transpose(1, 2))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map [b, images, 3, h, w] to [b * images, tokens, d]."""
        x = self.patches(pixel_values.flatten(0, 1)).flatten(2).transpose(1, 2) + self.positions
        return self.connector(self.norm(self.encoder(inputs_embeds=x).last_hidden_state))


class EmbeddingGraph(nn.Module):
    """Map token ids to embeddings."""

    outputs = ("inputs_embeds",)

    def __init__(self, model: nn.Module):
        super().__init__()
        self.embed_tokens = model.get_input_embeddings()

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map [b, s] to [b, s, d]."""
        return self.embed_tokens(input_ids)


class DecoderGraph(nn.Module):
    """Map embeddings and a cache to logits and the longer cache."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.text_model, self.head = model.model.text_model, model.lm_head
        self.num_layers = model.config.text_config.num_hidden_layers
        self.outputs = ("logits", *cache_names("present", self.num_layers))

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return logits [b, s, tokens] and the cache.

        Args:
            inputs_embeds: [b, s, d].
            attention_mask: 1 for tokens, cached ones first, and 0 for padding, [b, past + s].
            position_ids: [b, s].
            past: keys and values of each layer in turn, [b, heads, past, head_dim] each.
        """
        from transformers.cache_utils import DynamicCache, DynamicLayer

        cache = DynamicCache()
        for key, value in zip(past[::2], past[1::2], strict=True):
            layer = DynamicLayer()
            layer.lazy_initialization(key, value)
            layer.keys, layer.values = key, value
            cache.layers.append(layer)
        keys = torch.arange(attention_mask.shape[1])
        queries = keys[past[0].shape[2] :]
        mask = (keys[None] <= queries[:, None])[None, None] & attention_mask.bool()[:, None, None]
        output = self.text_model(
            inputs_embeds=inputs_embeds,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        present = [part for layer in output.past_key_values.layers for part in (layer.keys, layer.values)]
        return self.head(output.last_hidden_state), *present


def cache_names(prefix: str, num_layers: int) -> list[str]:
    """Return the names of a cache's tensors, as transformers.js expects them."""
    return [f"{prefix}.{layer}.{part}" for layer in range(num_layers) for part in ("key", "value")]


def write_graphs(model: nn.Module, folder: Path) -> None:
    """Write `vision_encoder.onnx`, `embed_tokens.onnx` and `decoder_model_merged.onnx` of an Idefics3 model."""
    import onnx

    from .onnx_files import store_in_float16, trace

    text, vision = model.config.text_config, model.config.vision_config
    ids, num_layers = torch.zeros(2, 3, dtype=torch.long), text.num_hidden_layers
    past = [torch.zeros(2, text.num_key_value_heads, 5, text.head_dim) for _ in range(2 * num_layers)]
    embeddings, mask = torch.zeros(2, 3, text.hidden_size), torch.ones(2, 3 + 5, dtype=torch.long)
    decoder_sizes = {"inputs_embeds": (0, 1), "attention_mask": (0, 1), "position_ids": (0, 1)}
    pixels = torch.zeros(2, 2, 3, vision.image_size, vision.image_size)
    graphs = {
        "vision_encoder": (VisionGraph(model), (pixels,), {"pixel_values": (0, 1)}),
        "embed_tokens": (EmbeddingGraph(model), (ids,), {"input_ids": (0, 1)}),
        "decoder_model_merged": (
            DecoderGraph(model),
            (embeddings, mask, ids, past),
            decoder_sizes | {"past": [(0, 2)] * len(past)},
        ),
    }
    for name, (module, inputs, sizes) in graphs.items():
        names = [*list(sizes)[:3], *cache_names("past_key_values", num_layers)] if "past" in sizes else list(sizes)
        traced = trace(module.eval(), inputs, sizes, names)
        for tensor in (tensor for tensor in traced.graph.input if tensor.name.startswith("past")):
            # by these names transformers.js makes the first, empty cache
            batch, _, length, _ = tensor.type.tensor_type.shape.dim
            batch.dim_param, length.dim_param = "batch_size", "past_sequence_length"
        store_in_float16(traced)
        onnx.save(traced, folder / f"{name}.onnx")


def onnx(checkpoint: str, /, output: Path) -> None:
    """Write a SmolVLM checkpoint, its LoRA merged, as an ONNX model that transformers.js runs in a browser.

    Example: python -m export onnx runs/smolvlm --output runs/smolvlm_onnx

    Args:
        checkpoint: a PEFT folder of an Idefics3 model
        output: folder of the model; an earlier export in it is replaced

    Raises:
        InputError: the checkpoint is missing or broken, or not of an Idefics3 model
    """
    require("onnx", "onnxscript")
    check_replaceable(output)
    from homework.models.loading import checkpoint_folder, load_for_inference
    from homework.models.tux_nano.model import TuxNano

    model, processor = load_for_inference(checkpoint_folder(checkpoint))
    if isinstance(model, TuxNano):
        raise InputError(checkpoint, "its base is TuxNano", "run `python -m export web` for it")
    model = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    model = model.float().cpu().eval().requires_grad_(False)
    with new_folder(output, kind="onnx", checkpoint=str(checkpoint)) as folder:
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        _save_processor(processor, folder)
        (folder / "onnx").mkdir()
        write_graphs(model, folder / "onnx")
    logger.info(f"saved {output}")


def _save_processor(processor, folder: Path) -> None:
    """Write a processor as transformers does, and again where transformers.js looks for its parts."""
    processor.save_pretrained(folder)
    images = {**processor.image_processor.to_dict(), "processor_class": type(processor).__name__}
    write_json(folder / "preprocessor_config.json", images)
    tokenizer = read_json(folder / "tokenizer_config.json") | {"chat_template": processor.chat_template}
    write_json(folder / "tokenizer_config.json", tokenizer)
