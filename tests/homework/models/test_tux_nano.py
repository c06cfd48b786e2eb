"""TuxNano: its architecture, its pixels and its tokens; a Llama and peft's LoRA as references."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaModel

from homework.models.images import normalise
from homework.models.loading import DEFAULT_BASE, load_model, load_processor
from homework.models.prompts import PromptTokens
from homework.models.tux_nano.config import TuxNanoConfig
from homework.models.tux_nano.language_model import LanguageModel
from homework.models.tux_nano.model import TuxNano
from homework.models.tux_nano.vision import VisionEncoder
from homework.training.packing import collate, pack
from homework.utils.errors import InputError
from homework.utils.images import open_image
from pretrain.assemble import fold_batch_norm
from tests.tiny_models import CONFIG, TEXT, VISION, stir


@pytest.fixture(scope="module")
def processor():
    """The shipped processor."""
    return load_processor(DEFAULT_BASE)


@pytest.fixture(scope="module")
def encoder() -> VisionEncoder:
    """A vision encoder in eval mode, without batch norms."""
    torch.manual_seed(0)
    return VisionEncoder(VISION).eval()


def test_fold_batch_norm_keeps_the_function():
    """The exported encoder computes what the trained one did, once its norms have statistics."""
    torch.manual_seed(0)
    encoder = VisionEncoder(replace(VISION, batch_norm=True))
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.05)
    for _ in range(4):
        loss = encoder(3 * torch.randn(4, 3, 100, 150) + 1).last_hidden_state[..., :8].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    encoder.eval()
    norms = [m for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(norm.running_mean.abs().max() > 0.01 and norm.bias.abs().max() > 0 for norm in norms)
    folded = fold_batch_norm(encoder)
    assert folded.config.batch_norm is False
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    pixels = torch.randn(2, 3, 100, 150)
    with torch.no_grad():
        expected, found = encoder(pixels).last_hidden_state, folded(pixels).last_hidden_state
    assert torch.allclose(expected, found, atol=1e-4)


@pytest.mark.parametrize("height, width", [(100, 150), (192, 192), (64, 333), (37, 20), (400, 600)])
def test_takes_any_size(encoder, height, width):
    """For each of two passes: register tokens, a cell per 16 pixels at the training height, the fovea's 12x4."""
    tokens = encoder(torch.zeros(3, 3, height, width)).last_hidden_state
    cells = 7 * -(-round(width * 100 / height) // 16) + 4 * 12
    assert tokens.shape == (3, 2, 2 + cells, VISION.hidden_size)


def test_fovea_is_the_same_in_view_and_crop(encoder):
    """The foveal branch gets the same from the middle of a view as from the whole view."""
    view = torch.randn(1, 3, 100, 150)
    whole, crop = (encoder.feature_maps(image)[1] for image in (view, view[..., 25:125]))
    assert [feature_map.shape[-2:] for feature_map in whole] == [(16, 48), (8, 24), (4, 12)]
    for a, b in zip(whole, crop, strict=True):
        assert torch.equal(a, b)
    outside = view.clone()
    outside[..., 32:64, 27:123] = 0
    moved = encoder.feature_maps(view - outside)[1][0] - whole[0]
    assert moved.abs().max() == 0  # nothing else enters


def test_crop_has_fewer_tokens_than_a_view(encoder):
    """The grader's crop keeps the karts' size: 7x7 cells instead of 7x10; and the fovea."""
    view, crop = (encoder(torch.zeros(1, 3, *size)).last_hidden_state.shape[2] for size in ((100, 150), (192, 192)))
    assert (view, crop) == (2 + 70 + 48, 2 + 49 + 48)


def test_processor_gives_the_training_pixels(processor, views):
    """A 150x100 view becomes the same pixels for inference as in pretraining."""
    image = open_image(views[0])
    pixels = processor.image_processor([[image]], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 1, 3, 100, 150)
    assert torch.allclose(pixels[0, 0], normalise(np.array(image)), atol=1e-6)


def test_processor_brings_other_sizes_to_a_view(processor, views):
    """Images of other sizes, alone or beside a view, become 150x100 too."""
    image = open_image(views[0])
    pixels = processor.image_processor([[image.resize((600, 400))], [image]], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (2, 1, 3, 100, 150)
    assert (pixels[0] - pixels[1]).abs().mean() < 0.1


def test_save_and_load_give_the_same_model(nano_folder, tmp_path):
    """Config and weights, each stored once: the output layer is the embedding."""
    model = TuxNano.load(nano_folder)
    assert model.config == CONFIG and not model.training and not any(p.requires_grad for p in model.parameters())
    model.save(tmp_path)
    again = TuxNano.load(tmp_path)
    assert again.config == model.config and again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())
    assert model.get_output_embeddings() is model.language_model.embed_tokens


@torch.no_grad()
def test_language_model_is_transformers_llama(views, nano_folder):
    """With a packed sequence's mask, with padding on the left, and from a cache on."""
    ours = stir(LanguageModel(TEXT)).eval()
    config = LlamaConfig(
        vocab_size=TEXT.vocab_size,
        hidden_size=TEXT.hidden_size,
        intermediate_size=TEXT.intermediate_size,
        num_hidden_layers=TEXT.num_layers,
        num_attention_heads=TEXT.num_heads,
        num_key_value_heads=TEXT.num_kv_heads,
        head_dim=TEXT.head_dim,
        rms_norm_eps=TEXT.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": TEXT.rope_theta},
        attn_implementation="sdpa",
    )
    llama = LlamaModel(config).eval()
    llama.load_state_dict(ours.state_dict())
    tokens = PromptTokens(load_processor(str(nano_folder)))
    pairs = [("What track is this?", "abyss", 1.0), ("What kart is the ego car?", "tux", 1.0)]
    batch = collate([pack(tokens, pairs), pack(tokens, pairs[:1])], torch.empty(0), 2)
    packed = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask")}
    ids = torch.tensor([[2, 2, *range(100, 110)], [*range(200, 212)]])
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    for inputs in (packed, padded):
        is_token = torch.ones(1) if inputs is packed else mask[..., None]
        found, expected = (model(**inputs).last_hidden_state * is_token for model in (ours, llama))
        assert torch.allclose(found, expected, atol=2e-4) and expected.std() > 0.5
    first = {"input_ids": ids[:, :-3], "attention_mask": mask[:, :-3], "position_ids": positions[:, :-3]}
    rest = {"input_ids": ids[:, -3:], "attention_mask": mask, "position_ids": positions[:, -3:]}
    cache = ours(**first, use_cache=True).past_key_values
    cache.batch_select_indices(torch.tensor([1, 0]))
    swapped = {name: values[[1, 0]] for name, values in rest.items()}
    found = ours(**swapped, past_key_values=cache, use_cache=True).last_hidden_state[[1, 0]]
    assert torch.allclose(found, llama(**padded).last_hidden_state[:, -3:], atol=2e-4)


@pytest.fixture
def folder(nano_folder, tmp_path) -> Path:
    """A copy of the tiny base, to be changed."""
    return Path(shutil.copytree(nano_folder, tmp_path / "base"))


def change_config(folder: Path, **values) -> None:
    """Replace entries of config.json; `text__vocab_size` is in its `text`."""
    content = json.loads((folder / "config.json").read_text())
    for name, value in values.items():
        part, _, last = name.rpartition("__")
        (content[part] if part else content)[last] = value
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"model_type": "mine"}, None),
        ({"text__rope_theta": None}, "rope_theta is None"),
        ({"text__num_layers": 3}, "not the weights that config.json describes"),
        ({"text__num_layers": 10**8}, "layers for"),
        ({"text__num_layers": -1}, "num_layers is -1"),
        ({"text__vocab_size": 10**8}, r"config.json says \(100000000, 48\)"),
        ({"text__intermediate_size": 10**8}, "config.json says"),
        ({"text__head_dim": 10**8}, "config.json says"),
        ({"text__rope_scaling": 4.0}, "unknown settings: rope_scaling"),
        ({"vision__blocks": [0, 1, 1, 10**8]}, "layers for"),
        ({"vision__channels": [10**6] * 4}, "config.json says"),
        ({"vision__hidden_size": 10**8}, "config.json says"),
        ({"vision__num_register_tokens": 10**8}, "config.json says"),
        ({"vision__num_heads": 5}, "heads that do not divide"),
        ({"vision__batch_norm": 1}, "batch_norm is 1"),
        ({"num_karts": 10**8}, "config.json says"),
        ({"num_counts": "many"}, "num_counts is 'many'"),
    ],
)
def test_a_config_that_does_not_fit_is_one_line(folder, values, problem):
    """A size in a config takes neither memory nor time, and nothing unknown is ignored."""
    change_config(folder, **values)
    with pytest.raises(InputError, match=problem) as info:
        load_model(str(folder)) if problem else TuxNanoConfig.load(folder)
    assert "\n" not in str(info.value) and str(folder) in str(info.value)


def test_other_files_in_the_folder_do_not_matter(folder):
    """Such as those that a file manager leaves."""
    (folder / ".DS_Store").write_bytes(b"\0")
    (folder / "README.md").write_text("mine")
    assert load_model(str(folder)).config == CONFIG


@pytest.mark.parametrize("damage", ["missing", "cut", "one less", "one more"])
def test_weights_that_do_not_fit_are_one_line(folder, damage):
    file = folder / "model.safetensors"
    weights = load_file(file)
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "one less":
        save_file({name: weight for name, weight in weights.items() if "layers.1.mlp.up" not in name}, file)
    else:
        save_file(weights | {"more": torch.ones(1)}, file)
    with pytest.raises(InputError, match="not the weights that config.json describes") as info:
        load_model(str(folder))
    assert "\n" not in str(info.value)


def test_a_missing_token_is_named(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<end_of_utterance>"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="has no token <end_of_utterance>"):
        load_processor(str(folder))


def test_special_token_ids(processor):
    """SmolVLM's ids, which the course's grader relies on."""
    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_BASE)  # as graders read it
    expected = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<global-img>": 49152}
    grid = [(row, column) for row in range(1, 7) for column in range(1, 7)]
    expected |= {f"<row_{row}_col_{column}>": 49153 + i for i, (row, column) in enumerate(grid)}
    expected |= {"<fake_token_around_image>": 49189, "<image>": 49190, "<end_of_utterance>": 49279}
    expected |= {f"<|reserved_special_token_{i}|>": 49191 + i for i in range(88)}
    for token, index in expected.items():
        assert tokenizer.convert_tokens_to_ids(token) == index, token
        assert tokenizer(token, add_special_tokens=False)["input_ids"] == [index], token
    assert len(tokenizer) == 49280
    names = ("unk", "bos", "pad", "eos")
    assert [getattr(tokenizer, f"{name}_token_id") for name in names] == [0, 1, 2, 49279]
    assert tokenizer.eos_token == "<end_of_utterance>"
    assert TuxNanoConfig.load(Path(DEFAULT_BASE)).image_token_id == 49190
    texts = ["What kart is the ego car?", "12 karts, \u00e9t\u00e9 \u4e2d <image>", ""]
    assert [processor.tokenizer(text)["input_ids"] for text in texts] == [
        tokenizer(text)["input_ids"] for text in texts
    ]


def test_digits_stand_alone(processor):
    """Each digit is a token of its own, so that 10 and 1 differ in the second token only."""
    tokenizer = processor.tokenizer
    ids = tokenizer("2048")["input_ids"]
    assert [tokenizer.decode([i], skip_special_tokens=True) for i in ids] == ["2", "0", "4", "8"]
    one, ten = (tokenizer(f" {n}", add_special_tokens=False)["input_ids"] for n in (1, 10))
    assert ten[: len(one)] == one and len(ten) == len(one) + 1


@pytest.mark.parametrize(
    "text", ["sara_the_racer is the ego car.", "There are 10 karts.", " front and left", "ä ☃\n x"]
)
def test_tokenizer_gives_the_text_back(processor, text):
    """Byte level: decoding gives what was encoded, and no token is added."""
    ids = processor.tokenizer(text)["input_ids"]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_known_ids(processor):
    """Ids of SmolLM2's vocabulary for the chat's own words, from its published merges."""
    tokenizer = processor.tokenizer
    words = {"User": 11126, ":": 42, "\n": 198, "Ass": 9519, "istant": 9531}
    for word, index in words.items():
        assert tokenizer(word, add_special_tokens=False)["input_ids"] == [index], word


def test_chat_turn(processor, views):
    """SmolVLM's turn, and the ids around the question."""
    content = [{"type": "image"}, {"type": "text", "text": "What track is this?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert text == "<|im_start|>User:<image>What track is this?<end_of_utterance>\nAssistant:"
    ids = processor(text=text, images=[Image.open(views[0])])["input_ids"][0]
    image = [49189, 49152, *[49190] * 24, 49189]
    assert ids[: 3 + len(image)] == [1, 11126, 42, *image]
    assert (
        processor.tokenizer.decode(ids[3 + len(image) :], skip_special_tokens=False)
        == "What track is this?<end_of_utterance>\nAssistant:"
    )
    assert ids[-5:] == [49279, 198, 9519, 9531, 42]
