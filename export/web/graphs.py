"""The two models as four ONNX graphs: image and decoder of the VLM, image and text encoder of CLIP.

Weights are stored once, in float16, in a file that the graphs share; the runtime converts them when it loads.
"""

from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from homework.labels.scene import VIEW_SIZE
from homework.models.clip import CLIP
from homework.models.shared_vocab import SharedRowHead
from homework.models.tux_nano.language_model import KVCache, LanguageModel
from homework.models.tux_nano.model import TuxNano

from ..onnx_files import SharedWeights, trace

WEIGHTS_FILE = "weights.bin"


class VLMImage(nn.Module):
    """Map a view to its image tokens, and to what the prediction heads recognise."""

    outputs = ("image_tokens", "ego", "present", "place", "total", "track")

    def __init__(self, model: TuxNano):
        super().__init__()
        self.vision_encoder, self.connector = model.vision_encoder, model.connector

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Map [1, 3, 100, 150] to image tokens [n, d], probabilities, and places (y, x) [karts, 2], see `outputs`."""
        logits = self.connector.prediction_heads(self.vision_encoder(pixel_values).last_hidden_state)
        return (
            self.connector.embed_predictions(logits)[0],
            logits["ego"][0].softmax(-1),
            logits["relation"][0, :, 0].sigmoid(),
            logits["place"][0],
            logits["total"][0].softmax(-1),
            logits["track"][0].softmax(-1),
        )


class VLMDecoder(nn.Module):
    """Decode the next token of several sequences about one image."""

    outputs = ("logits", "present")

    def __init__(self, language_model: LanguageModel, table: Tensor):
        super().__init__()
        self.language_model, self.table = language_model, nn.Parameter(table.clone(), requires_grad=False)

    def forward(
        self, rows: Tensor, image_tokens: Tensor, mask: Tensor, position_ids: Tensor, past: Tensor, past_rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the next token's logits [b, rows] and the cache [layers, 2, b, heads, past + s, head_dim].

        Args:
            rows: of the tokens in the table of distinct embeddings, [b, s]; those from its length on are image tokens.
            image_tokens: [n, d].
            mask: true where a row's token attends to a column's, [b, 1, s, past + s].
            position_ids: [b, s].
            past: the cache of c earlier sequences, [layers, 2, c, heads, past, head_dim].
            past_rows: which of these each sequence continues, [b].
        """
        embeddings = torch.cat([self.table, image_tokens])[rows]
        cache = KVCache()
        cache.layers = [(layer[0], layer[1]) for layer in past[:, :, past_rows].unbind(0)]
        hidden_states = self.language_model(None, mask, position_ids, cache, embeddings).last_hidden_state
        present = torch.stack([torch.stack(layer) for layer in cache.layers])
        return hidden_states[:, -1] @ self.table.T, present


class CLIPImage(nn.Module):
    """Map the grader's crop, resized to the height of a view, to CLIP's image feature."""

    outputs = ("image_features",)

    def __init__(self, clip: CLIP):
        super().__init__()
        self.clip = clip

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map [1, 3, 100, 100] to [1, dim]."""
        return self.clip.encode_image(pixel_values)


class CLIPText(nn.Module):
    """Map captions to CLIP's text features."""

    outputs = ("text_features",)

    def __init__(self, clip: CLIP, table: Tensor):
        super().__init__()
        self.clip, self.table = clip, nn.Parameter(table.clone(), requires_grad=False)

    def forward(self, rows: Tensor, mask: Tensor, last: Tensor) -> Tensor:
        """Map tokens [n, s], their mask [n, 1, s, s] and each text's last place [n] to [n, dim]."""
        position_ids = torch.arange(rows.shape[1], device=rows.device)[None]
        embeddings = self.table[rows]
        hidden_states = self.clip.text_encoder(None, mask, position_ids, None, embeddings).last_hidden_state
        state = hidden_states[torch.arange(len(last), device=last.device), last]
        return nn.functional.normalize(self.clip.text_projection(state), dim=-1)


def write_graphs(vlm: TuxNano, clip: CLIP, folder: Path) -> SharedRowHead:
    """Write the four graphs and their weights; return the output layer with the table of distinct embeddings."""
    head, text = SharedRowHead(vlm.get_output_embeddings().weight), vlm.config.text
    num_rows, height = len(head.table), vlm.config.vision.image_height
    # examples of every input; the sizes named in `dynamic` may differ from theirs
    ids, image_tokens = torch.zeros(2, 3, dtype=torch.long), torch.zeros(4, text.hidden_size)
    cache = torch.zeros(text.num_layers, 2, 3, text.num_kv_heads, 5, text.head_dim)
    mask, row = torch.ones(2, 1, 3, 5 + 3, dtype=torch.bool), ids[:, 0]
    decoder_sizes = {"rows": (0, 1), "image_tokens": (0,), "mask": (0, 2, 3), "position_ids": (0, 1), "past": (2, 4)}
    graphs = {
        "vlm_image": (VLMImage(vlm), (torch.zeros(1, 3, height, VIEW_SIZE[0]),), {}),
        "vlm_decoder": (
            VLMDecoder(vlm.language_model, head.table),
            (ids + num_rows, image_tokens, mask, ids, cache, row),
            decoder_sizes | {"past_rows": (0,)},
        ),
        "clip_image": (CLIPImage(clip), (torch.zeros(1, 3, height, height),), {}),
        "clip_text": (
            CLIPText(clip, head.table),
            (ids, mask[..., :3], row),
            {"rows": (0, 1), "mask": (0, 2, 3), "last": (0,)},
        ),
    }
    with SharedWeights(folder / WEIGHTS_FILE) as weights:
        for name, (module, inputs, sizes) in graphs.items():
            model = trace(module.eval(), inputs, sizes)
            weights.take_from(model)
            (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    for name in graphs:
        onnx.checker.check_model(folder / f"{name}.onnx")
    return head
