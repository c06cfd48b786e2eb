"""SmolVLM and other Idefics3 models, by transformers (from 4.52 on) and peft. No code of a checkpoint is run."""

import contextlib
import inspect
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..utils.errors import InputError, first_line
from .lora_weights import REMEDY, check_same_weights, read_lora_config
from .prompts import PromptTokens

if TYPE_CHECKING:
    from transformers import ProcessorMixin

MAX_LAYERS = 1000  # more than any model has


@contextlib.contextmanager
def library_errors_as_input_error(path: str | Path, problem: str, remedy: str) -> Iterator[None]:
    """Silence all libraries, and turn whatever they raise into an `InputError`: one line about `path`."""
    from transformers.utils import logging as transformers_logging

    disabled_level, has_bars = logging.root.manager.disable, transformers_logging.is_progress_bar_enabled()
    logging.disable()  # every logger: each library has its own, some with a level of their own
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(path, f"{problem} ({first_line(error)})", remedy) from None
    finally:
        logging.disable(disabled_level)
        if has_bars:
            transformers_logging.enable_progress_bar()


def load_model(base: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Load an Idefics3 model from a folder, in eval mode."""
    with library_errors_as_input_error(base, "cannot load it as a base", "name another folder or hub model"):
        import transformers

        # trust_remote_code: by default transformers prompts, and runs code from the folder if the user answers `y`
        config = transformers.AutoConfig.from_pretrained(base, trust_remote_code=False)
        config._attn_implementation = "sdpa"  # of its parts too: a config may name one from the hub, which is code
        _check_config_fits_weights(base, config)
        dtype_name = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
        model = transformers.AutoModelForImageTextToText.from_pretrained(
            base, config=config, use_safetensors=True, trust_remote_code=False, **{dtype_name: dtype}
        )
    return model.to(device).eval()


def load_processor(base: str) -> "ProcessorMixin":
    """Load tokenizer, chat template and image processor, with padding on the left as generation needs it."""
    with library_errors_as_input_error(base, "cannot load it as a base", "name another folder or hub model"):
        from transformers import AutoProcessor

        # no splitting and no upscaling: an image is resized once, to the size that the vision encoder takes
        settings = {"do_image_splitting": False, "do_resize": False, "trust_remote_code": False}
        processor = AutoProcessor.from_pretrained(base, **settings)
        processor.tokenizer.padding_side = "left"
        processor.tokenizer.model_max_length = sys.maxsize  # nothing is truncated; longer texts only gave a warning
        if processor.tokenizer.eos_token is None or processor.tokenizer.pad_token is None:
            raise ValueError("its tokenizer has no end or no padding token")
        PromptTokens(processor)  # raises now what is broken, not when it is used
    return processor


def load_adapter(model: nn.Module, checkpoint: str | Path) -> nn.Module:
    """Return `model` as a PeftModel with a PEFT folder's LoRA weights.

    Raises:
        InputError: the weights are missing, broken, or trained on another base.
    """
    with library_errors_as_input_error(checkpoint, "not an adapter of this base", REMEDY):
        from peft import LoraConfig, PeftModel, get_peft_model_state_dict
        from peft.utils import load_peft_weights

        known = inspect.signature(LoraConfig).parameters  # a newer peft writes settings that an older one does not know
        values = {name: value for name, value in read_lora_config(checkpoint).items() if name in known}
        # without the settings by which peft imports a named module
        config = LoraConfig(**values | {"megatron_config": None, "megatron_core": None, "auto_mapping": None})
        peft_model = PeftModel.from_pretrained(model, str(checkpoint), config=config)
        # peft only warns of layers without a weight, and ignores weights without a layer
        expected = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
        stored = load_peft_weights(str(checkpoint), device="cpu")
        check_same_weights({name for name in expected.keys() ^ stored if "lora_" in name})
        return peft_model


def _check_config_fits_weights(base: str, config) -> None:
    """Check that a folder holds as many weights as its config claims: memory will be allocated for these."""
    num_layers = re.findall(r'"num_hidden_layers": ([\d.e+]+)', json.dumps(config.to_dict(), default=str))
    if max(map(float, num_layers), default=0) > MAX_LAYERS:
        raise ValueError(f"its config claims more than {MAX_LAYERS} layers")
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForImageTextToText

    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ValueError(f"{type(config).__name__} is not an image-text-to-text model's")
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]  # imports its class: torchvision cannot be imported on `meta`
    size = sum(file.stat().st_size for file in Path(base).glob("*.safetensors"))
    with torch.device("meta"):  # where weights take no memory
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    claimed = sum(parameter.numel() for parameter in model.parameters())
    if claimed > 2 * size:  # a weight takes a byte at least, and two that are tied are stored once
        raise ValueError(f"its config claims {claimed:,} weights, but the files of its weights have {size:,} bytes")
