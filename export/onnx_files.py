"""Trace modules as ONNX models, with their weights in float16."""

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

OPSET = 20
ALIGNMENT = 64  # bytes
MIN_WEIGHTS = 256  # numbers; smaller tensors stay in float32


Sizes = dict[str, tuple[int, ...] | list[tuple[int, ...]]]


def trace(
    module: nn.Module, inputs: tuple[Tensor | list[Tensor], ...], sizes: Sizes, names: list[str] | None = None
) -> onnx.ModelProto:
    """Trace a module, whose `outputs` are the outputs' names, as an ONNX model.

    Args:
        inputs: an example of each argument of `forward`.
        sizes: the dimensions of each argument that may have other sizes; for a list of tensors, a list of these.
        names: of the inputs, instead of the arguments'.
    """
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it reports what it does not fold
    dynamic = {
        name: [_dynamic(one) for one in dims] if isinstance(dims, list) else _dynamic(dims)
        for name, dims in sizes.items()
    }
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=dynamic or None,
            input_names=names,
            output_names=module.outputs,
            verbose=False,
        )
    model = program.model_proto
    for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        part.ClearField("metadata_props")  # where in the source each node comes from, as large as the graph
        part.ClearField("doc_string")
    model.graph.ClearField("value_info")
    return model


def _dynamic(dims: tuple[int, ...]) -> dict:
    return dict.fromkeys(dims, torch.export.Dim.DYNAMIC)


def store_in_float16(model: onnx.ModelProto, store: Callable[[onnx.TensorProto, bytes], None] | None = None) -> None:
    """Store a model's large float32 weights in float16; the model converts them back, at once when it is loaded.

    Args:
        store: puts a tensor's bytes somewhere; by default into the tensor itself.
    """
    casts = []
    for initializer in model.graph.initializer:
        weight = onnx.numpy_helper.to_array(initializer)
        if weight.dtype != np.float32 or weight.size < MIN_WEIGHTS:
            continue
        name, stored = initializer.name, f"{initializer.name}.float16"
        content = weight.astype(np.float16).tobytes()
        initializer.Clear()
        initializer.name, initializer.data_type = stored, onnx.TensorProto.FLOAT16
        initializer.dims.extend(weight.shape)
        if store:
            store(initializer, content)
        else:
            initializer.raw_data = content
        casts.append(onnx.helper.make_node("Cast", [stored], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)


class SharedWeights:
    """A file for the weights of several ONNX models, each distinct one once, in float16."""

    def __init__(self, path: Path):
        self.path, self.places = path, {}

    def __enter__(self) -> "SharedWeights":
        self.stream = open(self.path, "wb")
        return self

    def __exit__(self, *_) -> None:
        self.stream.close()

    def take_from(self, model: onnx.ModelProto) -> None:
        """Move a model's weights here, see `store_in_float16`."""
        store_in_float16(model, self._refer)

    def _refer(self, initializer: onnx.TensorProto, content: bytes) -> None:
        """Store a tensor's bytes, and say in the tensor where they are."""
        initializer.data_location = onnx.TensorProto.EXTERNAL
        places = {"location": self.path.name, "offset": self._store(content), "length": len(content)}
        for key, value in places.items():
            initializer.external_data.add(key=key, value=str(value))

    def _store(self, content: bytes) -> int:
        """Return where the file holds these bytes, which are written if they are new."""
        digest = hashlib.sha256(content).digest()
        if digest not in self.places:
            self.stream.write(b"\0" * (-self.stream.tell() % ALIGNMENT))
            self.places[digest] = self.stream.tell()
            self.stream.write(content)
        return self.places[digest]
