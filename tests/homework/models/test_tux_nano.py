"""The embedded base: its architecture, its pixels and its tokens."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from homework.models.images import normalise
from homework.models.loading import DEFAULT_BASE
from homework.models.tux_nano.modeling_hf import (
    TuxNanoConfig,
    TuxNanoForConditionalGeneration,
    TuxNanoProcessor,
    TuxNanoVisionConfig,
    TuxNanoVisionModel,
)
from homework.utils.images import open_image
from pretrain.assemble import fold_batch_norm
from tests.tiny_models import VISION


@pytest.fixture(scope="module")
def processor():
    """The shipped processor."""
    return AutoProcessor.from_pretrained(DEFAULT_BASE)


@pytest.fixture(scope="module")
def tower() -> TuxNanoVisionModel:
    """A tower in eval mode, without batch norms."""
    torch.manual_seed(0)
    return TuxNanoVisionModel(TuxNanoVisionConfig(**VISION)).eval()


def test_fold_batch_norm_keeps_the_function():
    """What is exported answers as what was trained, once the norms have learned something."""
    torch.manual_seed(0)
    tower = TuxNanoVisionModel(TuxNanoVisionConfig(**VISION, batch_norm=True))
    optimizer = torch.optim.SGD(tower.parameters(), lr=0.05)
    for _ in range(4):
        loss = tower(3 * torch.randn(4, 3, 100, 150) + 1).last_hidden_state[..., :8].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tower.eval()
    norms = [m for m in tower.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(norm.running_mean.abs().max() > 0.01 and norm.bias.abs().max() > 0 for norm in norms)
    folded = fold_batch_norm(tower)
    assert folded.config.batch_norm is False
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    pixels = torch.randn(2, 3, 100, 150)
    with torch.no_grad():
        expected, found = tower(pixels).last_hidden_state, folded(pixels).last_hidden_state
    assert torch.allclose(expected, found, atol=1e-4)


@pytest.mark.parametrize("height, width", [(100, 150), (192, 192), (64, 333), (37, 20), (400, 600)])
def test_takes_any_size(tower, height, width):
    """For each of two looks: summary tokens, a cell for 16 pixels at the height of its training, the fovea's 12x4."""
    tokens = tower(torch.zeros(3, 3, height, width)).last_hidden_state
    cells = 7 * -(-round(width * 100 / height) // 16) + 4 * 12
    assert tokens.shape == (3, 2, 2 + cells, VISION["hidden_size"])


def test_fovea_is_the_same_in_view_and_crop(tower):
    """The middle of a view shows the tower's fovea what the whole view does."""
    view = torch.randn(1, 3, 100, 150)
    whole, crop = (tower.feature_maps(image)[1] for image in (view, view[..., 25:125]))
    assert [feature_map.shape[-2:] for feature_map in whole] == [(16, 48), (8, 24), (4, 12)]
    for a, b in zip(whole, crop, strict=True):
        assert torch.equal(a, b)
    outside = view.clone()
    outside[..., 32:64, 27:123] = 0
    moved = tower.feature_maps(view - outside)[1][0] - whole[0]
    assert moved.abs().max() == 0  # it sees nothing else


def test_crop_has_fewer_tokens_than_a_view(tower):
    """The grader's crop keeps the karts' size: 7x7 cells instead of 7x10; and the fovea."""
    view, crop = (tower(torch.zeros(1, 3, *size)).last_hidden_state.shape[2] for size in ((100, 150), (192, 192)))
    assert (view, crop) == (2 + 70 + 48, 2 + 49 + 48)


def test_processor_gives_the_training_pixels(processor, views):
    """A 150x100 view becomes the same pixels for answering as in the training of the base."""
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


def test_auto_classes_round_trip(nano_folder, tmp_path, views):
    """transformers' Auto classes load the base, write it and load it again; no remote code."""
    config = AutoConfig.from_pretrained(nano_folder)
    model = AutoModelForImageTextToText.from_pretrained(nano_folder)
    processor = AutoProcessor.from_pretrained(nano_folder)
    assert type(config) is TuxNanoConfig and type(model) is TuxNanoForConditionalGeneration
    assert type(processor) is TuxNanoProcessor
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    for part in ("vision_config", "text_config"):
        first, second = (getattr(c, part).to_dict() | {"dtype": None} for c in (config, again.config))
        assert first == second
    assert model.state_dict().keys() == again.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What track is this?"}]}]
    )
    inputs = [
        p(text=text, images=[Image.open(views[0])], return_tensors="pt")
        for p in (processor, AutoProcessor.from_pretrained(tmp_path))
    ]
    for name in inputs[0]:
        assert torch.equal(inputs[0][name], inputs[1][name])
    with torch.no_grad():
        assert torch.equal(model(**inputs[0]).logits, again(**inputs[1]).logits)


def test_language_head_is_tied(nano_folder):
    """The embedding is the language head, so it is stored once."""
    model = AutoModelForImageTextToText.from_pretrained(nano_folder)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_special_token_ids(processor):
    """SmolVLM's ids, which the course's grader counts on."""
    tokenizer = processor.tokenizer
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
    config = AutoConfig.from_pretrained(DEFAULT_BASE)
    ids = (config.image_token_id, config.pad_token_id, config.bos_token_id, config.eos_token_id)
    assert ids == (49190, 2, 1, 49279)


def test_digits_stand_alone(processor):
    """Each digit is a token of its own, so that 10 and 1 differ in the second token only."""
    tokenizer = processor.tokenizer
    ids = tokenizer("2048")["input_ids"]
    assert [tokenizer.decode([i]) for i in ids] == ["2", "0", "4", "8"]
    one, ten = (tokenizer(f" {n}", add_special_tokens=False)["input_ids"] for n in (1, 10))
    assert ten[: len(one)] == one and len(ten) == len(one) + 1


@pytest.mark.parametrize(
    "text", ["sara_the_racer is the ego car.", "There are 10 karts.", " front and left", "ä ☃\n x"]
)
def test_tokenizer_gives_the_text_back(processor, text):
    """Byte level: decoding gives what was encoded, and no token is added."""
    ids = processor.tokenizer(text)["input_ids"]
    assert processor.tokenizer.decode(ids) == text


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
    assert processor.tokenizer.decode(ids[3 + len(image) :]) == "What track is this?<end_of_utterance>\nAssistant:"
    assert ids[-5:] == [49279, 198, 9519, 9531, 42]


def test_chat_without_an_image(processor):
    """A turn of text alone has a space after the colon, and an answer closes with the end token."""
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Hi"}]},
    ]
    expected = "<|im_start|>User: Hello<end_of_utterance>\nAssistant: Hi<end_of_utterance>\n"
    assert processor.apply_chat_template(messages) == expected
