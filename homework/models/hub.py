"""Bases of the Hugging Face hub: found in its cache, wherever that is, or downloaded once."""

import logging
import re
from pathlib import Path

from ..utils.errors import InputError, first_line, folder_not_found
from ..utils.io import read_json
from ..utils.progress import is_quiet

logger = logging.getLogger(__name__)

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
PATTERNS = ["*.json", "*.jinja", "*.txt", "*.safetensors"]  # at the top: folders hold the weights in other formats


def is_hub_name(base: str) -> bool:
    """Return whether a base's name has the form OWNER/NAME, and is not that of a training run, runs/NAME.

    Such a name may be a relative folder's too.
    """
    return re.fullmatch(r"(?!runs/)\w[\w.-]*/\w[\w.-]*", base) is not None


def hub_folder(name: str) -> Path:
    """Return the folder of a hub model in the hub's cache; only what is missing there is downloaded.

    A name whose owner is a folder here is rather a mistyped path: it is not downloaded.

    Raises:
        InputError: not in the cache, and the hub cannot be reached or has no such model.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
        if _is_complete(folder):
            return folder
    except LocalEntryNotFoundError:
        pass
    problem = "no such base or checkpoint here or in the hub's cache"
    remedy = f'cache it first: hf download {name} --exclude "onnx/*"'
    if Path(name).parent.is_dir():
        raise folder_not_found(Path(name), problem, remedy)
    logger.info(f"{name} is not in the hub's cache: downloading it")
    if is_quiet():
        disable_progress_bars()
    reason = "the hub cannot be reached"
    try:
        folder = Path(snapshot_download(name, allow_patterns=PATTERNS, ignore_patterns=["*/*"]))
        if _is_complete(folder):  # without a network, an incomplete folder is returned
            return folder
    except Exception as error:  # the hub's, and those of its client's client
        reason = first_line(error.__cause__ or error)
    raise InputError(name, f"{problem}, and no download ({reason})", remedy)


def _is_complete(folder: Path) -> bool:
    """Return whether a snapshot in the cache has all files of a base: other programs cache only some."""
    index = folder / WEIGHTS_INDEX
    weights = set(read_json(index)["weight_map"].values()) if index.is_file() else {WEIGHTS}
    names = {"config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", *weights}
    return all((folder / file).is_file() for file in names)
