"""Define the command `web`: a static page with both models."""

import hashlib
import json
import logging
import shutil
import tarfile
from pathlib import Path

from homework.utils.errors import InputError

from ..common import check_replaceable, new_folder, require

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
SAMPLE = Path(__file__).parents[2] / "sample/valid.tar"
# views of the sample with three karts or more, all of whose questions the shipped VLM answers right
EXAMPLES = ("0003e.05", "00012.00", "0001b.07", "00014.04", "0002f.03", "00053.06")
MODEL_FILES = ("*.onnx", "weights.bin")


def web(*, vlm: str = "vlm", clip: str = "clip", output: Path = Path("web"), npm: Path = Path("runs/npm")) -> None:
    """Write a static web page on which TuxNano and CLIP answer questions and compare captions, also offline.

    Example: python -m export web --vlm runs/vlm --clip runs/clip --output web

    Args:
        vlm: checkpoint of the VLM, by default the shipped one; its base has to be TuxNano
        clip: checkpoint of CLIP, of the same base
        output: folder of the page; any static host can serve it, e.g. `python -m http.server --directory web`
        npm: folder for the package onnxruntime-web, downloaded by npm at first use

    Raises:
        InputError: a checkpoint is missing, or not of TuxNano; or the package cannot be had
    """
    require("onnx", "onnxscript")
    check_replaceable(output)
    import torch

    from homework.clip import load as load_clip
    from homework.finetune import load as load_vlm
    from homework.models.loading import unwrap
    from homework.models.tux_nano.model import TuxNano

    loaded = load_vlm(vlm)
    model, compared = unwrap(loaded.model).cpu(), unwrap(load_clip(clip)).cpu()
    for name, is_supported in ((vlm, isinstance(model, TuxNano)), (clip, compared.prediction_heads is not None)):
        if not is_supported:
            raise InputError(name, "its base is not TuxNano", "choose a checkpoint of TuxNano")
    table, other = model.get_output_embeddings().weight, compared.text_encoder.embed_tokens.weight
    if not torch.equal(table, other):
        raise InputError(clip, f"its base is another TuxNano than that of {vlm}", "choose checkpoints of one base")
    from .config import page_config, write_merges
    from .graphs import write_graphs
    from .runtime import copy_runtime

    with new_folder(output, kind="web", vlm=str(vlm), clip=str(clip)) as folder:
        shutil.copytree(STATIC, folder, dirs_exist_ok=True)
        copy_runtime(npm, folder)
        head = write_graphs(model, compared, folder)
        write_merges(loaded.processor, folder / "merges.txt")
        config = page_config(model, compared, loaded.processor, head) | {"examples": _copy_examples(folder)}
        (folder / "config.json").write_text(json.dumps(config))
        _list_files(folder)
        size = sum(file.stat().st_size for pattern in MODEL_FILES for file in folder.glob(pattern))
    logger.info(f"saved {output}, models of {size / 1e6:.1f} MB; serve it: python -m http.server --directory {output}")


def _copy_examples(folder: Path) -> list[str]:
    """Copy views of the sample, if it is there, as pictures to start with; return their names."""
    if not SAMPLE.is_file():
        return []
    (folder / "examples").mkdir()
    with tarfile.open(SAMPLE) as archive:
        for name in EXAMPLES:
            (folder / f"examples/{name}.jpg").write_bytes(archive.extractfile(f"{name}.jpg").read())
    return [f"examples/{name}.jpg" for name in EXAMPLES]


def _list_files(folder: Path) -> None:
    """Name all files in the service worker, and a version of them, so that a changed page replaces the kept one."""
    worker = folder / "sw.js"
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file != worker]
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    names = ["./", *(file.relative_to(folder).as_posix() for file in files)]
    text = worker.read_text(encoding="utf-8").replace("VERSION", digest.hexdigest()[:16])
    worker.write_text(text.replace("FILES = []", f"FILES = {json.dumps(names)}"), encoding="utf-8")
