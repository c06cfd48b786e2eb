"""Test models.loading: merged LoRA against peft's, adapters that do not fit, names, and what is not imported."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from homework import clip
from homework.base_vlm import BaseVLM
from homework.models.clip import CLIP
from homework.models.idefics3 import load_adapter
from homework.models.loading import (
    DEFAULT_BASE,
    add_adapter,
    backbone,
    base_id,
    checkpoint_folder,
    load_base,
    load_for_inference,
    load_model,
    load_processor,
    resolve_base,
)
from homework.models.lora_weights import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_adapter, merge_lora, read_adapter_base
from homework.models.tux_nano.model import TuxNano
from homework.training.clip_dataset import CLIPTrainingModule
from homework.training.lora import PeftTrainingModule
from homework.training.packing import collate, pack
from homework.utils.errors import InputError
from tests.homework.test_base_vlm import all_questions, ids_instead_of_text
from tests.tiny_models import build_clip, features, randomly_adapted

ROOT = Path(__file__).parents[3]


def write_random_adapter(base: Path, folder: Path) -> Path:
    """Write a PEFT folder with random LoRA on every layer that training adapts."""
    PeftTrainingModule(randomly_adapted(load_model(str(base)), base)).save_adapter(folder)
    return folder


@pytest.fixture
def adapter(nano_folder, tmp_path) -> Path:
    """Return a PEFT folder with random LoRA on the tiny TuxNano."""
    return write_random_adapter(nano_folder, tmp_path / "adapter")


@pytest.fixture
def clip_adapter(nano_folder, tmp_path) -> Path:
    """Return the folder of a CLIP with random LoRA on its text encoder, as training writes it."""
    module = CLIPTrainingModule(
        randomly_adapted(build_clip(load_base(str(nano_folder))), nano_folder, "vision_encoder")
    )
    module.save_adapter(tmp_path / "clip")
    return tmp_path / "clip"


def change_config(adapter: Path, **values) -> None:
    """Replace settings in an adapter's config."""
    file = adapter / ADAPTER_CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def load_by_peft(base: Path, adapter: Path) -> torch.nn.Module:
    """Load a model with LoRA layers of peft, which compute W x + B A x alpha / r without merging."""
    return PeftModel.from_pretrained(load_model(str(base)), str(adapter)).eval()


@pytest.mark.parametrize("lora_alpha", [None, 1, 2.5])
def test_merged_lora_answers_as_peft(nano_folder, adapter, views, lora_alpha):
    """Answers agree token for token with peft's LoRA layers, for every scale alpha / r."""
    if lora_alpha:
        change_config(adapter, lora_alpha=lora_alpha)
    vlm = ids_instead_of_text(BaseVLM(adapter))
    assert type(vlm.model) is TuxNano and not vlm.model.training
    images, questions = all_questions(views)
    answers = vlm.answer(images, questions)
    by_peft = BaseVLM.from_parts(load_by_peft(nano_folder, adapter), vlm.processor)
    assert answers == ids_instead_of_text(by_peft).answer(images, questions)
    assert len(set(answers)) == len(answers)
    assert ids_instead_of_text(BaseVLM(nano_folder)).answer(images, questions) != answers


@torch.no_grad()
@pytest.mark.parametrize("lora_alpha", [None, 1, 2.5])
def test_merged_lora_gives_the_hidden_states_of_peft(nano_folder, adapter, views, lora_alpha):
    """A packed batch with images has the same hidden states; those of the base differ."""
    if lora_alpha:
        change_config(adapter, lora_alpha=lora_alpha)
    vlm = BaseVLM(adapter)
    pairs = [("What track is this?", "abyss", 1.0), ("What kart is the ego car?", "tux", 1.0)]
    batch = collate([pack(vlm.tokens, pairs), pack(vlm.tokens, pairs[:1])], vlm.pixel_values(views[:2]), 2)
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask", "pixel_values")}
    models = vlm.model, load_by_peft(nano_folder, adapter), load_model(str(nano_folder))
    merged, by_peft, base = (backbone(model)(**inputs).last_hidden_state for model in models)
    assert torch.allclose(merged, by_peft, atol=2e-4) and by_peft.std() > 0.5
    assert not torch.allclose(merged, base, atol=0.1)


@pytest.mark.parametrize("lora_alpha", [None, 1])
def test_merged_clip_gives_the_features_of_peft(nano_folder, clip_adapter, views, lora_alpha):
    """A CLIP checkpoint with LoRA on the text encoder has peft's features; those of the base differ."""
    if lora_alpha:
        change_config(clip_adapter, lora_alpha=lora_alpha)
    merged, tokenizer = clip.load_with_tokenizer(clip_adapter)
    assert type(merged) is CLIP
    by_peft = build_clip(load_base(str(nano_folder)))
    by_peft = PeftModel.from_pretrained(by_peft, str(clip_adapter)).eval()
    by_peft.get_base_model().load_pretrained(clip_adapter)
    expected = features(by_peft.get_base_model(), tokenizer, views)
    for found, feature in zip(features(merged, tokenizer, views), expected, strict=True):
        assert torch.allclose(found, feature, atol=1e-5)
    without_lora = build_clip(load_base(str(nano_folder)))
    without_lora.load_pretrained(clip_adapter)
    assert not torch.allclose(expected[1], features(without_lora, tokenizer, views)[1], atol=1e-3)


def assert_refused(load, adapter: Path, problem: str = "") -> None:
    """Expect one line that names the adapter and begins alike whatever does not fit."""
    with pytest.raises(InputError, match=f"not an adapter of this base .*{problem}") as info:
        load()
    assert str(info.value).startswith(f"{adapter}: ") and "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"use_dora": True}, "not use_dora"),
        ({"use_rslora": True}, "not use_rslora"),
        ({"lora_bias": True}, "not lora_bias"),
        ({"fan_in_fan_out": True}, "not fan_in_fan_out"),
        ({"modules_to_save": ["norm"]}, "not modules_to_save"),
        ({"layers_to_transform": [0]}, "not layers_to_transform"),
        ({"alpha_pattern": {"q_proj": 3}}, "not alpha_pattern"),
        ({"rank_pattern": {"q_proj": 3}}, "not rank_pattern"),
        ({"bias": "all"}, "not a trained bias"),
        ({"init_lora_weights": "pissa"}, "not init_lora_weights 'pissa'"),
        ({"something_new": 1}, "not something_new"),
        ({"target_modules": ["q_proj"]}, "weights are in only one of adapter and base"),
        ({"target_modules": "q_proj k_proj"}, "target_modules"),
        ({"target_modules": None}, "target_modules"),
        ({"exclude_modules": r"language_model\..*"}, "weights are in only one of adapter and base"),
        ({"exclude_modules": ["q_proj"]}, "exclude_modules"),
        ({"r": 8}, "claims rank 8, its weights have 4"),
        ({"r": 2}, "has shape"),
        ({"r": 0}, "expected integers above 0"),
        ({"r": -4}, "expected integers above 0"),
        ({"r": True}, "expected integers above 0"),
        ({"r": 10**12}, "claims rank 1000000000000, its weights have 4"),
        ({"lora_alpha": "many"}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"peft_type": "LOHA"}, "is not one of LoRA"),
    ],
)
def test_what_is_not_plain_lora_is_refused(adapter, values, problem):
    """Nothing that would compute something else is merged."""
    BaseVLM(adapter)
    change_config(adapter, **values)
    assert_refused(lambda: BaseVLM(adapter), adapter, problem)


def test_settings_of_training_do_not_matter(adapter):
    """Initialisation, dropout and target names without a layer concern training alone: no answer changes."""
    targets = json.loads((adapter / ADAPTER_CONFIG).read_text())["target_modules"]
    before = BaseVLM(adapter).model.state_dict()
    change_config(adapter, init_lora_weights="gaussian", lora_dropout=0.1, task_type="CAUSAL_LM", peft_version="9.0")
    change_config(adapter, target_modules=[*targets, "lm_head"])
    assert all(torch.equal(weight, before[name]) for name, weight in BaseVLM(adapter).model.state_dict().items())


@pytest.mark.parametrize("more", ["embed_tokens", "slot_embedding", "0", "norm", "global_head"])
def test_a_target_module_without_weights_is_refused(adapter, more):
    """The named layer may be an embedding, a convolution, a norm, or a linear layer without LoRA weights."""
    targets = json.loads((adapter / ADAPTER_CONFIG).read_text())["target_modules"]
    change_config(adapter, target_modules=[*targets, more])
    assert_refused(lambda: BaseVLM(adapter), adapter)


@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
@pytest.mark.parametrize("shape", [(1, 4), (4,), (49, 4), (48, 1), (4, 1), (1, 1), (48, 4, 1), (48, 8), (8, 48)])
def test_lora_of_a_wrong_shape_is_refused(adapter, half, shape):
    """A weight that would broadcast is not spread over all rows either."""
    weights = load_file(adapter / ADAPTER_WEIGHTS)
    name = next(name for name in weights if name.endswith(f"q_proj.{half}.weight"))
    save_file(weights | {name: torch.ones(shape)}, adapter / ADAPTER_WEIGHTS)
    assert_refused(lambda: BaseVLM(adapter), adapter)


def test_halves_of_another_common_rank_are_refused(adapter):
    """Their product has the layer's shape, but the config's alpha / r is not theirs."""
    weights = load_file(adapter / ADAPTER_WEIGHTS)
    name = next(name for name in weights if name.endswith("q_proj.lora_A.weight"))
    other = name.replace("lora_A", "lora_B")
    save_file(
        weights | {name: weights[name][:2].clone(), other: weights[other][:, :2].clone()}, adapter / ADAPTER_WEIGHTS
    )
    assert_refused(lambda: BaseVLM(adapter), adapter, "has shape")


def test_a_refused_adapter_leaves_the_model_as_it_was(nano_folder, adapter):
    """Every weight is checked before the first one is merged."""
    weights = load_file(adapter / ADAPTER_WEIGHTS)
    save_file(weights | {max(weights): torch.ones(1, 4)}, adapter / ADAPTER_WEIGHTS)
    model, intact = load_model(str(nano_folder)), load_model(str(nano_folder)).state_dict()
    assert_refused(lambda: merge_lora(model, adapter), adapter)
    assert all(torch.equal(weight, intact[name]) for name, weight in model.state_dict().items())


@pytest.fixture
def any_adapter(base_folder, tmp_path) -> Path:
    """Return a PEFT folder with random LoRA, on each of the two tiny bases."""
    return write_random_adapter(base_folder, tmp_path / "any")


@pytest.mark.parametrize(
    "damage",
    ["one less", "layers less", "one more", "wrong shape", "rank", "huge rank", "not LoRA", "no file", "truncated"],
)
def test_adapters_of_both_bases_have_the_same_checks(any_adapter, damage):
    """Each weight belongs to one layer, each layer has its weights, and the config fits them."""
    BaseVLM(any_adapter)
    file = any_adapter / ADAPTER_WEIGHTS
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("q_proj.lora_B.weight"))
    if damage == "one less":
        del weights[name]
    elif damage == "layers less":
        weights = {name: weight for name, weight in weights.items() if "q_proj" not in name}
    elif damage == "one more":
        weights[name.replace("model.", "model.other.", 1)] = weights[name].clone()
    elif damage == "wrong shape":
        weights[name] = torch.ones(1, 4)
    elif damage in ("rank", "huge rank"):
        change_config(any_adapter, r=8 if damage == "rank" else 10**12)
    elif damage == "not LoRA":
        change_config(any_adapter, peft_type="LOHA")
    save_file(weights, file)
    if damage == "no file":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    assert_refused(lambda: BaseVLM(any_adapter), any_adapter)


def test_an_idefics3_adapter_is_loaded_by_peft(smol_folder, tmp_path, views):
    """It answers as peft's own loading does, and a config of a newer peft loads too."""
    adapter = write_random_adapter(smol_folder, tmp_path / "smol")
    change_config(adapter, something_new=None)
    vlm = ids_instead_of_text(BaseVLM(adapter))
    assert isinstance(vlm.model, PeftModel) and not vlm.model.training
    images, questions = all_questions(views)
    answers = vlm.answer(images, questions)
    config = json.loads((adapter / ADAPTER_CONFIG).read_text())
    del config["something_new"]
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(config))
    by_peft = BaseVLM.from_parts(load_by_peft(smol_folder, adapter), vlm.processor)
    assert answers == ids_instead_of_text(by_peft).answer(images, questions)


def test_an_adapter_of_the_other_architecture_is_refused(nano_folder, smol_folder, tmp_path):
    """A base named in an adapter that was trained on another one is an error, whichever way round."""
    for base, other in ((nano_folder, smol_folder), (smol_folder, nano_folder)):
        folder = write_random_adapter(base, tmp_path / base.name)
        change_config(folder, base_model_name_or_path=str(other))
        assert_refused(lambda folder=folder: load_for_inference(folder), folder)


def test_adapters_are_merged_or_kept_by_architecture(nano_folder, smol_folder, tmp_path):
    """`add_adapter` merges into TuxNano, and gives Idefics3 layers of peft."""
    nano, smol = (write_random_adapter(base, tmp_path / base.name) for base in (nano_folder, smol_folder))
    assert type(add_adapter(load_model(str(nano_folder)), nano)) is TuxNano
    assert isinstance(add_adapter(load_model(str(smol_folder)), smol), PeftModel)
    assert isinstance(load_adapter(load_model(str(nano_folder)), nano), PeftModel)


def test_names_of_bases_and_checkpoints(nano_folder, adapter, tmp_path, monkeypatch):
    """`vlm` and `clip` are the submitted checkpoints, `tux_nano` the bundled base; all else is a path or a hub name."""
    monkeypatch.chdir(tmp_path)
    weights = Path(DEFAULT_BASE).parent
    assert checkpoint_folder("vlm") == weights / "vlm" and checkpoint_folder("clip") == weights / "clip"
    assert checkpoint_folder(str(adapter)) == adapter and checkpoint_folder("runs/vlm") == Path("runs/vlm")
    for name in ("tux_nano", "/another/machine/tux_nano", DEFAULT_BASE):
        assert resolve_base(name) == DEFAULT_BASE
    assert base_id(DEFAULT_BASE) == "tux_nano" and base_id(str(nano_folder)) == str(nano_folder)
    assert resolve_base("OWNER/NAME") == "OWNER/NAME"
    assert is_adapter(weights / "vlm") and not is_adapter(weights / "tux_nano")
    assert read_adapter_base(weights / "vlm") == read_adapter_base(weights / "clip") == "tux_nano"
    for name in ("vlmm", str(tmp_path / "gone")):
        with pytest.raises(InputError, match="no such base or checkpoint"):
            load_for_inference(name)
    for name in ("nowhere", str(nano_folder)):
        with pytest.raises(InputError, match="no such checkpoint|not an adapter"):
            read_adapter_base(name)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_broken_base_is_one_line_that_names_it(base_folder, tmp_path, file):
    base = Path(shutil.copytree(base_folder, tmp_path / "base"))
    (base / file).write_bytes((base / file).read_bytes()[:100])
    load = load_processor if file == "tokenizer.json" else load_model
    with pytest.raises(InputError) as info:
        load(str(base))
    assert str(info.value).startswith(str(base)) and "\n" not in str(info.value)


def test_answers_import_no_transformers(views):
    """Neither the VLM nor CLIP imports transformers or peft, which would take most of a start."""
    script = (
        "import sys; import homework; from homework import clip\n"
        "vlm, (model, tokenizer) = homework.load_vlm(), clip.load_with_tokenizer('clip')\n"
        f"(answer,) = vlm.answer([{str(views[0])!r}], ['What track is this?'])\n"
        f"row = {{'image_path': {str(views[0])!r}, 'candidates': ['The track is abyss.', 'tux is the ego car.']}}\n"
        "assert answer and len(clip.predict(model, tokenizer, [row])) == 1\n"
        "print([name for name in ('transformers', 'peft', 'huggingface_hub', 'sympy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
