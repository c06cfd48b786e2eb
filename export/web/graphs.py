"""The two models as four ONNX graphs: image and decoder of the VLM, image and text encoder of CLIP.

Weights are stored once, in float16, in a file that the graphs share; the runtime converts them when it loads.
"""

import contextlib
import hashlib
import io
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from homework.labels.scene import VIEW_SIZE
from homework.models.clip import CLIP
from homework.models.shared_vocab import SharedRowHead
from homework.models.tux_nano.language_model import KVCache, LanguageModel
from homework.models.tux_nano.model import TuxNano

OPSET = 20
WEIGHTS_FILE = "weights.bin"
ALIGNMENT = 64  # bytes
MIN_EXTERNAL_SIZE = 256  # numbers; smaller tensors stay in the graph, in float32


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


def trace(module: nn.Module, inputs: tuple[Tensor, ...], sizes: dict[str, tuple[int, ...]]):
    """Trace a module as an ONNX model.

    Args:
        inputs: an example of each argument of `forward`.
        sizes: the dimensions of each argument that may have other sizes.
    """
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it reports what it does not fold
    dynamic = {name: dict.fromkeys(dims, torch.export.Dim.DYNAMIC) for name, dims in sizes.items()}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=dynamic or None,
            output_names=module.outputs,
            verbose=False,
        )
    model = program.model_proto
    for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        part.ClearField("metadata_props")  # where in the source each node comes from, as large as the graph
        part.ClearField("doc_string")
    model.graph.ClearField("value_info")
    return model


class SharedWeights:
    """A file for the weights of several ONNX models, each distinct one once, in float16."""

    def __init__(self, path: Path):
        self.path, self.places = path, {}

    def __enter__(self) -> "SharedWeights":
        self.stream = open(self.path, "wb")
        return self

    def __exit__(self, *_) -> None:
        self.stream.close()

    def take_from(self, model) -> None:
        """Move a model's large float32 initializers here, and convert them back where the model uses them."""
        casts = []
        for initializer in model.graph.initializer:
            weight = onnx.numpy_helper.to_array(initializer)
            if weight.dtype != np.float32 or weight.size < MIN_EXTERNAL_SIZE:
                continue
            name, stored = initializer.name, f"{initializer.name}.float16"
            content = weight.astype(np.float16).tobytes()
            offset = self._store(content)
            initializer.Clear()
            initializer.name, initializer.data_type = stored, onnx.TensorProto.FLOAT16
            initializer.dims.extend(weight.shape)
            initializer.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", self.path.name), ("offset", offset), ("length", len(content))):
                initializer.external_data.add(key=key, value=str(value))
            casts.append(onnx.helper.make_node("Cast", [stored], [name], to=onnx.TensorProto.FLOAT))
        nodes = [*casts, *model.graph.node]
        model.graph.ClearField("node")
        model.graph.node.extend(nodes)

    def _store(self, content: bytes) -> int:
        """Return where the file holds these bytes, which are written if they are new."""
        digest = hashlib.sha256(content).digest()
        if digest not in self.places:
            self.stream.write(b"\0" * (-self.stream.tell() % ALIGNMENT))
            self.places[digest] = self.stream.tell()
            self.stream.write(content)
        return self.places[digest]
