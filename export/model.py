"""Define the command `model`: a checkpoint with its LoRA merged, and a model card; and load a merged CLIP."""

import logging
import shutil
from pathlib import Path

from homework.labels.rows import DATA_DIR
from homework.utils.errors import InputError, first_line
from homework.utils.io import read_json

from .common import check_replaceable, new_folder, write_card

logger = logging.getLogger(__name__)

MANIFEST_FILE = "training.json"  # of a training run
CLIP_WEIGHTS, BASE_FOLDER = "clip.safetensors", "base"


def model(
    checkpoint: str,
    /,
    output: Path,
    push: str | None = None,
    split: str = "valid_grader",
    data: Path = DATA_DIR,
) -> None:
    """Write a checkpoint as a model of its own, its LoRA merged, with a model card that has its scores.

    A SmolVLM checkpoint becomes an Idefics3 folder for transformers, TuxNano a folder for `BaseVLM`.

    Example: python -m export model runs/vlm --output runs/merged --push OWNER/NAME

    Args:
        checkpoint: a PEFT folder of the VLM or CLIP, or `vlm` or `clip`, the shipped ones
        output: folder of the model; an earlier export in it is replaced
        push: also upload it to this private repository of the hub, as OWNER/NAME
        split: folder of the data to evaluate on for the card; without it the card says that nothing was measured
        data: the data folder

    Raises:
        InputError: the checkpoint is missing or broken, or the upload fails
    """
    check_replaceable(output)
    from homework.models.clip import ADDITIONAL_WEIGHTS
    from homework.models.loading import base_folder, checkpoint_folder, is_tux_nano
    from homework.models.lora_weights import read_adapter_base
    from homework.models.runs import check_is_finished

    source = checkpoint_folder(checkpoint)
    check_is_finished(source, "vlm")
    base = read_adapter_base(source)
    is_clip, is_ours = (source / ADDITIONAL_WEIGHTS).exists(), is_tux_nano(base_folder(base))
    manifest = read_json(source / MANIFEST_FILE) if (source / MANIFEST_FILE).exists() else {}
    with new_folder(output, kind="model", checkpoint=str(checkpoint)) as folder:
        scores = (_merge_clip if is_clip else _merge_vlm)(source, folder, data, split)
        recipe = {key: value for key, value in manifest.get("config", {}).items() if value is not None}
        kind = "clip" if is_clip else "tux_nano" if is_ours else "idefics3"
        values = {"base": base, "date": manifest.get("date"), "recipe": recipe, "scores": scores, "split": split}
        write_card(folder, "model.md.jinja", kind=kind, name=push or output.name, **values)
    logger.info(f"saved {output}")
    if push:
        _push(output, push)


def _merge_vlm(source: Path, folder: Path, data: Path, split: str) -> list[tuple]:
    """Write the merged VLM, and return its scores, see `_score_table`."""
    from homework.base_vlm import BaseVLM
    from homework.data import VQADataset, benchmark
    from homework.models.loading import unwrap

    vlm = BaseVLM(source)
    scores = []
    if (data / split).is_dir():
        result = benchmark(vlm, VQADataset(split, data))
        hits = {name: round(result.accuracy_by_type[name] * n) for name, n in result.num_by_type.items()}
        scores = _score_table(hits, result.num_by_type)
    # merged once the adapter has been measured, as merging rounds the weights of a base in bfloat16
    merged = vlm.model.merge_and_unload() if hasattr(vlm.model, "merge_and_unload") else unwrap(vlm.model)
    _save_base(merged, vlm.processor, source, folder)
    return scores


def _save_base(model, processor, source: Path, folder: Path) -> None:
    """Write a base's model and processor, in the dtype that the weights of the base of `source` are stored in."""
    from safetensors import safe_open

    from homework.models.loading import base_folder
    from homework.models.lora_weights import read_adapter_base
    from homework.models.tux_nano.model import TuxNano
    from homework.models.tux_nano.processor import TOKENIZER_FILE

    base = base_folder(read_adapter_base(source))
    if isinstance(model, TuxNano):
        model.save(folder)
        shutil.copy(base / TOKENIZER_FILE, folder)
        return
    with safe_open(next(base.glob("*.safetensors")), "pt") as stored:
        dtype = stored.get_tensor(next(iter(stored.keys()))).dtype
    model.to(dtype=dtype).save_pretrained(folder)
    processor.save_pretrained(folder)


def _merge_clip(source: Path, folder: Path, data: Path, split: str) -> list[tuple]:
    """Write the merged CLIP, and return its scores, see `_score_table`."""
    from safetensors.torch import save_file

    from homework.clip import count_correct_by_type, load_with_tokenizer, predict
    from homework.data import MultiChoiceQADataset
    from homework.models.loading import base_folder
    from homework.models.lora_weights import read_adapter_base

    clip, tokenizer = load_with_tokenizer(source)
    scores = []
    if (data / split).is_dir():
        rows = MultiChoiceQADataset(split, data).rows
        scores = _score_table(*count_correct_by_type(rows, predict(clip, tokenizer, rows)))
    # the base too, of which `load_clip` builds the encoders
    shutil.copytree(base_folder(read_adapter_base(source)), folder / BASE_FOLDER)
    merged = clip.merge_and_unload() if hasattr(clip, "merge_and_unload") else clip
    weights = {name: weight.detach().cpu().clone() for name, weight in merged.state_dict().items()}
    save_file(weights, folder / CLIP_WEIGHTS)
    return scores


def load_clip(folder: str | Path) -> tuple:
    """Load (CLIP, tokenizer) that `export model` wrote, in eval mode.

    Raises:
        InputError: the folder is not one, or its weights are broken.
    """
    from safetensors.torch import load_file

    from homework.models.clip import CLIP
    from homework.models.loading import load_base

    model, processor = load_base(str(Path(folder) / BASE_FOLDER))
    clip = CLIP.from_vlm(model)
    try:
        clip.load_state_dict(load_file(Path(folder) / CLIP_WEIGHTS))
    except Exception as error:  # of safetensors and torch
        raise InputError(folder, f"not a merged CLIP ({first_line(error)})", "export it again") from None
    return clip.eval(), processor.tokenizer


def _score_table(correct: dict[str, int], total: dict[str, int]) -> list[tuple]:
    """Return (name, percent, low, high, questions) by type and for all, with 95 % Wilson intervals."""
    from homework.data import wilson_interval

    counts = [(name, correct[name], total[name]) for name in sorted(total)]
    counts.append(("all", sum(correct.values()), sum(total.values())))
    return [(name, 100 * hits / n, *(100 * end for end in wilson_interval(hits / n, n)), n) for name, hits, n in counts]


def _push(folder: Path, name: str) -> None:
    """Upload a folder to a private model repository of the hub, made if there is none.

    Raises:
        InputError: the hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(name, private=True, exist_ok=True)
        url = api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload the model")
    except Exception as error:  # the hub's library raises many types
        remedy = f"log in with `hf auth login` and check the name; {folder} is complete"
        raise InputError(name, f"not pushed ({first_line(error)})", remedy) from None
    logger.info(f"pushed to {url}")
