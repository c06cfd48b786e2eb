"""The embedded architecture without transformers and peft: what it answers, and what is left to them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from homework import clip
from homework.base_vlm import BaseVLM
from homework.models.clip import CLIP
from homework.models.loading import load_base
from homework.models.prompts import PromptTokens
from homework.models.tux_nano import model as nano_quick
from homework.models.tux_nano.processor import QuickProcessor
from homework.training.lora import PeftTrainingModule
from homework.training.packing import collate, pack
from homework.utils.errors import InputError
from homework.utils.images import open_image
from tests.homework.test_base_vlm import all_questions, generated, ids_instead_of_text
from tests.tiny_models import TEXTS, build_clip, features, randomly_adapted

ROOT = Path(__file__).parents[3]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def adapter(nano_folder, tmp_path) -> Path:
    """A PEFT folder with random LoRA on the tiny base of our own architecture."""
    model, _ = load_base(str(nano_folder))
    PeftTrainingModule(randomly_adapted(model, nano_folder)).save_adapter(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def clip_adapter(nano_folder, tmp_path) -> Path:
    """The folder of a CLIP with random LoRA on both encoders."""
    model, folder = CLIP.from_vlm(load_base(str(nano_folder))[0]), tmp_path / "clip"
    PeftTrainingModule(randomly_adapted(model, nano_folder)).save_adapter(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def base(nano_folder, tmp_path) -> Path:
    """A copy of the tiny base, to be changed."""
    return Path(shutil.copytree(nano_folder, tmp_path / "base"))


def is_quick(vlm: BaseVLM) -> bool:
    return type(vlm.model) is nano_quick.TuxNano


@pytest.mark.parametrize("with_lora", [True, False])
def test_answers_are_those_of_transformers_and_peft(nano_folder, adapter, views, with_lora):
    """Token for token what transformers generates with peft's LoRA."""
    vlm = BaseVLM(adapter if with_lora else nano_folder)
    assert is_quick(vlm) and not vlm.model.training
    images, questions = all_questions(views)
    ids_instead_of_text(vlm)
    answers = vlm.answer(images, questions)
    assert answers == generated(vlm, images, questions)
    assert len(set(answers)) == len(answers)
    unlike = BaseVLM(nano_folder if with_lora else adapter)
    assert ids_instead_of_text(unlike).answer(images, questions) != answers


@torch.no_grad()
def test_hidden_states_are_those_of_transformers(adapter, views):
    """With a packed sequence's mask; with padding on the left, where a row is shorter; and from the cache on."""
    vlm = BaseVLM(adapter)
    quick, stock = vlm.model.model, vlm.stock[0].base_model.model.model
    pixels = vlm.pixel_values(views[:2])
    pairs = [("What track is this?", "abyss", 1.0), ("What kart is the ego car?", "tux", 1.0)]
    batch = collate([pack(vlm.tokens, pairs), pack(vlm.tokens, pairs[:1])], pixels, 2)
    packed = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask", "pixel_values")}
    prefix = torch.tensor([[2, 2, *vlm.tokens.prefix, 7, 8, 9], [*vlm.tokens.prefix, 5, 6, 7, 8, 9]])
    mask = torch.ones_like(prefix)
    mask[0, :2] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = {"input_ids": prefix, "attention_mask": mask, "position_ids": positions, "pixel_values": pixels}
    for inputs in (packed, padded):
        real = batch["position_ids"].new_ones(()) if inputs is packed else mask[..., None]
        ours, theirs = (model(**inputs).last_hidden_state * real for model in (quick, stock))
        assert torch.allclose(ours, theirs, atol=2e-4) and theirs.std() > 0.5
    first = {"input_ids": prefix[:, :-3], "attention_mask": mask[:, :-3], "position_ids": positions[:, :-3]}
    rest = {"input_ids": prefix[:, -3:], "attention_mask": mask, "position_ids": positions[:, -3:]}
    cache = quick(**first, pixel_values=pixels, use_cache=True).past_key_values
    cache.batch_select_indices(torch.tensor([1, 0]))
    swapped = {name: values[[1, 0]] for name, values in rest.items()}
    ours = quick(**swapped, past_key_values=cache, use_cache=True).last_hidden_state[[1, 0]]
    assert torch.allclose(ours, stock(**padded).last_hidden_state[:, -3:], atol=2e-4)


def test_processor_is_transformers_own(loaded_nano, nano_folder, views, tmp_path):
    """Prompts, tokens, texts and pixels, of an image of another size too."""
    ours, theirs = QuickProcessor(nano_folder), loaded_nano[1]
    first, second = PromptTokens(ours), PromptTokens(theirs)
    assert (first.prefix, first.end) == (second.prefix, second.end)
    for text in [
        "How many karts are there in the scenario?",
        "Is tux left?",
        "12 karts, \u00e9t\u00e9 \u4e2d <image>",
        "",
    ]:
        assert first.question(text) == second.question(text) and first.answer(text) == second.answer(text)
        assert first.decode(first.answer(text)) == second.decode(second.answer(text))
    encoded = [clip.tokenize(TEXTS, processor.tokenizer) for processor in (ours, theirs)]
    for mine, stock in zip(*(texts["input_ids"] * texts["attention_mask"] for texts in encoded), strict=True):
        assert mine[mine > 0].tolist() == stock[stock > 0].tolist()
    Image.open(views[0]).resize((640, 480)).save(tmp_path / "large.png")
    for path in (views[0], tmp_path / "large.png"):
        mine, stock = (
            p.image_processor([[open_image(path)]], return_tensors="pt")["pixel_values"] for p in (ours, theirs)
        )
        assert torch.allclose(torch.as_tensor(mine), torch.as_tensor(stock), atol=1e-6)


def test_clip_is_that_of_transformers_and_peft(nano_folder, clip_adapter, loaded_nano, views, monkeypatch):
    """The features of images and texts, with LoRA on both encoders."""
    quick, tokenizer = clip.load_with_tokenizer(clip_adapter)
    assert type(quick) is CLIP and quick.model is quick
    found = features(quick, tokenizer, views)
    monkeypatch.setattr(nano_quick, "load", lambda *_: None)
    stock, tokenizer = clip.load_with_tokenizer(clip_adapter)
    for mine, theirs in zip(found, features(stock, tokenizer, views), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    for mine, other in zip(found, features(build_clip(loaded_nano), tokenizer, views), strict=True):
        assert not torch.allclose(mine, other, atol=1e-2)


def change(file: Path, **values) -> None:
    """Replace entries of a JSON file; `part__name` is in its `part`."""
    content = json.loads(file.read_text())
    for name, value in values.items():
        *parts, last = name.split("__")
        place = content
        for part in parts:
            place = place[part]
        place[last] = value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"model_type": "idefics3"}),
        ("config.json", {"text_config__rope_parameters__rope_theta": None}),
        ("config.json", {"text_config__rope_parameters__rope_type": "linear"}),
        ("config.json", {"text_config__rope_parameters__factor": 2.0}),
        ("config.json", {"text_config__hidden_act": "gelu"}),
        ("config.json", {"text_config__num_hidden_layers": 3}),
        ("config.json", {"text_config__num_hidden_layers": 10**9}),
        ("config.json", {"text_config__num_hidden_layers": 10**9, "vision_config__num_hidden_layers": -(10**9)}),
        ("config.json", {"text_config__rope_scaling": {"rope_type": "linear", "factor": 4}}),
        ("config.json", {"text_config__partial_rotary_factor": 0.5}),
        ("config.json", {"quantization_config": {"bits": 4}}),
        ("config.json", {"vision_config__model_type": "siglip"}),
        ("config.json", {"text_config__vocab_size": 10**15}),
        ("config.json", {"vision_config__blocks": [0, 1, 1, 10**9]}),
        ("config.json", {"image_token_id": 5}),
        ("processor_config.json", {"image_seq_len": 3}),
        ("processor_config.json", {"image_processor__image_mean": [0.4, 0.5, 0.5]}),
        ("processor_config.json", {"image_processor__resample": 0}),
        ("processor_config.json", {"image_processor__do_center_crop": True}),
        ("tokenizer_config.json", {"eos_token": "<|im_end|>"}),
        ("tokenizer_config.json", {"extra_special_tokens": ["kart"]}),
        ("tokenizer_config.json", {"add_bos_token": True}),
    ],
)
def test_another_base_is_left_to_transformers(base, file, values):
    """What would not be the same model or the same pixels here; what a config claims takes neither memory nor time."""
    assert nano_quick.load(str(base)) is not None
    change(base / file, **values)
    assert nano_quick.load(str(base)) is None


@pytest.mark.parametrize("name", ["chat_template.json", "special_tokens_map.json", "model-00001-of-00002.safetensors"])
def test_another_file_is_left_to_transformers(base, name):
    """Which may read it."""
    (base / name).write_text("{}")
    assert nano_quick.load(str(base)) is None


def test_another_template_is_left_to_transformers(base):
    """The prompt here is that of one template."""
    file = base / "chat_template.jinja"
    file.write_text(file.read_text() + "{{ bos_token }}")
    assert nano_quick.load(str(base)) is None


def test_a_token_that_is_missing_is_left_to_transformers(base):
    """Which would add it."""
    content = json.loads((base / "tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<end_of_utterance>"]
    (base / "tokenizer.json").write_text(json.dumps(content))
    assert nano_quick.load(str(base)) is None


@pytest.mark.parametrize("broken", ["model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json"])
def test_broken_base_is_left_to_transformers(base, broken):
    """Whose error names what is wrong."""
    (base / broken).write_bytes((base / broken).read_bytes()[:100])
    assert nano_quick.load(str(base)) is None


@pytest.mark.parametrize(
    "values",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"alpha_pattern": {"q_proj": 3}},
        {"rank_pattern": {"q_proj": 3}},
        {"bias": "all"},
        {"init_lora_weights": "pissa"},
        {"something_new": 1},
        {"target_modules": ["q_proj"]},
        {"target_modules": "q_proj k_proj"},
        {"exclude_modules": r"model\.text_model\..*"},
        {"r": 8},
        {"r": 10**12},
        {"peft_type": "LOHA"},
    ],
)
def test_more_than_plain_lora_is_left_to_peft(adapter, nano_folder, values):
    """Or less: each layer that the adapter names has its weights, and no other."""
    assert nano_quick.load(str(nano_folder), adapter) is not None
    change(adapter / "adapter_config.json", **values)
    assert nano_quick.load(str(nano_folder), adapter) is None


@pytest.mark.parametrize("more", ["lm_head", "embed_tokens", "slot", "0"])
def test_a_layer_without_weights_is_left_to_peft(adapter, nano_folder, more):
    """It may be no linear one, such as the embedding, or the convolutions' `0`."""
    targets = json.loads((adapter / "adapter_config.json").read_text())["target_modules"]
    change(adapter / "adapter_config.json", target_modules=[*targets, more])
    assert nano_quick.load(str(nano_folder), adapter) is None


@pytest.mark.parametrize("shape", [(1, 4), (4,), (49, 4)])
def test_lora_of_a_wrong_shape_is_left_to_peft(adapter, nano_folder, shape):
    """It is not spread over all rows."""
    weights = load_file(adapter / WEIGHTS)
    name = next(name for name in weights if name.endswith("q_proj.lora_B.weight"))
    save_file(weights | {name: torch.ones(shape)}, adapter / WEIGHTS)
    assert nano_quick.load(str(nano_folder), adapter) is None


def test_scaled_lora_answers_as_peft(adapter, views):
    """`lora_alpha` counts."""
    change(adapter / "adapter_config.json", lora_alpha=1)
    vlm = ids_instead_of_text(BaseVLM(adapter))
    images, questions = all_questions(views)
    assert is_quick(vlm) and vlm.answer(images, questions) == generated(vlm, images, questions)


def test_missing_weights_are_peft_s_to_tell(adapter):
    """One line that names the folder."""
    weights = load_file(adapter / WEIGHTS)
    save_file({name: weight for name, weight in weights.items() if "q_proj" not in name}, adapter / WEIGHTS)
    with pytest.raises(InputError, match="not an adapter for this base"):
        BaseVLM(adapter)


def test_answers_import_no_transformers():
    """Neither the VLM's nor CLIP's: it would take most of a start."""
    script = (
        "import sys; import homework; from homework import clip\n"
        f"vlm, (model, _) = homework.load_vlm(), clip.load_with_tokenizer({str(clip.DEFAULT_CHECKPOINT)!r})\n"
        "vlm.tokens.question('What track is this?')\n"
        "print([name for name in ('transformers', 'peft', 'huggingface_hub', 'sympy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
