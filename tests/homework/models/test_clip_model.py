"""CLIP: features, loss, and the weights beside the adapter."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from homework import clip
from homework.labels.rows import CaptionDataset
from homework.models.clip import ADDITIONAL_WEIGHTS, SMOOTHING, class_prior_logits
from homework.models.images import clip_pixels
from homework.utils.errors import InputError
from homework.utils.images import open_image
from tests.tiny_models import TEXTS, build_clip, features

EVEN = torch.zeros(())  # log odds of captions that are as often true as not


def test_perfect_features_have_the_least_loss(loaded_nano, tiny_data):
    """However many captions are true of an image, and images of a caption: smooth labels alone are left."""
    truth = clip.CaptionMatchingDataset(CaptionDataset("train", tiny_data), tiny_data).truth
    truth = truth[truth.sum(1) == truth.sum(1).mode().values]  # of as many captions, so that the cosines are the same
    model = build_clip(loaded_nano)
    text = torch.eye(truth.shape[1])
    vision = nn.functional.normalize(truth, dim=-1)
    sure = math.log(2 / SMOOTHING - 1)  # the logit of a label
    with torch.no_grad():
        model.logit_scale.fill_(math.log(2 * sure / vision.max().item()))  # a false pair's cosine is 0
        model.logit_bias.fill_(-sure)
    least = truth.shape[1] * nn.functional.binary_cross_entropy(*[torch.tensor(SMOOTHING / 2)] * 2).item()
    assert model.loss(vision, text, truth, EVEN).item() == pytest.approx(least, rel=1e-5)
    # a single true pair called wrong would cost much
    wrong = truth.clone()
    wrong[0, truth[0].argmax()] = 0
    assert model.loss(vision, text, wrong, EVEN).item() > least + 2 / len(truth)


def test_no_true_caption_is_pushed_away(loaded_nano, tiny_data):
    """The gradient draws an image to each caption that is true of it, and away from all others."""
    truth = clip.CaptionMatchingDataset(CaptionDataset("train", tiny_data), tiny_data).truth
    model = build_clip(loaded_nano)
    text = torch.eye(truth.shape[1])
    vision = torch.zeros(truth.shape, requires_grad=True)
    model.loss(vision, text, truth, EVEN).backward()
    assert torch.equal(vision.grad < 0, truth == 1)


def test_kinds_of_seldom_captions_are_not_thought_less_likely(loaded_nano):
    """An image that says nothing gives a caption of each kind the score 0 on the mean, however often they are true."""
    truth, kinds = torch.zeros(1000, 3), ["relation", "total", "total"]
    truth[:10, 0], truth[:700, 1], truth[700:, 2] = 1, 1, 1
    model, text = build_clip(loaded_nano), torch.eye(3)
    vision = torch.zeros(truth.shape, requires_grad=True)
    model.loss(vision, text, truth, class_prior_logits(truth, kinds)).backward()
    relation, one, two = vision.grad.sum(0)
    assert abs(relation) < 1e-3 and abs(one + two) < 1e-3
    assert one < 0 < two  # what is more often true is drawn up, within its kind
    assert class_prior_logits(torch.zeros(5, 2), kinds[:2]).isfinite().all()


def test_padding_side_does_not_matter(loaded):
    """Texts padded on the left, on the right, or alone have the same features."""
    model, tokenizer = build_clip(loaded), loaded[1].tokenizer
    found = []
    with torch.no_grad():
        for side in ("right", "left"):
            tokenizer.padding_side = side
            encoded = clip.tokenize(TEXTS, tokenizer)
            assert (encoded["attention_mask"] == 0).any()
            found.append(model.encode_text(**encoded))
        alone = torch.cat([model.encode_text(**clip.tokenize([text], tokenizer)) for text in TEXTS])
    assert torch.allclose(found[0], found[1], atol=1e-5) and torch.allclose(found[0], alone, atol=1e-5)
    assert (found[0] @ found[0].T - torch.eye(3)).abs().max() > 0.01
    assert not torch.allclose(found[0][0], found[0][1], atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_pixels_of_any_float_type(loaded, views, dtype):
    """Pixels of any float type give unit vectors, about the same ones."""
    model, tokenizer = build_clip(loaded), loaded[1].tokenizer
    pixels = clip_pixels([open_image(path) for path in views])
    with torch.no_grad():
        vision, text, scale = model(pixels.to(dtype), **clip.tokenize(TEXTS, tokenizer))
        expected = model.encode_image(pixels)
    assert vision.shape == (4, 128) and text.shape == (3, 128) and scale.item() == pytest.approx(10)
    for feature in (vision, text):
        assert torch.allclose(feature.norm(dim=-1), torch.ones(len(feature)), atol=1e-5)
    assert (vision * expected).sum(-1).min() > 0.99
    assert not torch.allclose(vision[0], vision[1], atol=1e-2)


def test_additional_weights_round_trip(loaded, tmp_path):
    """All that is not the base's is written and read again."""
    first, second = build_clip(loaded, seed=1), build_clip(loaded)
    assert not torch.equal(first.text_projection.weight, second.text_projection.weight)
    first.save_pretrained(tmp_path)
    second.load_pretrained(tmp_path)
    for name, weight in first.additional_weights().items():
        assert torch.equal(weight, second.additional_weights()[name]), name
    assert not any("encoder" in name for name in first.additional_weights())


class Code:
    """A pickle of this writes a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("damage", ["missing", "broken", "other shapes", "other names", "no dict", "code"])
def test_broken_additional_weights(loaded_nano, tmp_path, damage):
    """Weights that are broken or of another base: one line that names the file; code in it is not run."""
    model, file, ran = build_clip(loaded_nano), tmp_path / ADDITIONAL_WEIGHTS, tmp_path / "ran"
    weights = model.additional_weights()
    contents = {
        "other shapes": weights | {"text_projection.weight": torch.zeros(128, 576)},
        "other names": {f"x.{name}": weight for name, weight in weights.items()},
        "no dict": [1],
        "code": weights | {"logit_bias": Code(ran)},
    }
    if damage == "broken":
        file.write_bytes(b"broken")
    elif damage != "missing":
        torch.save(contents[damage], file)
    with pytest.raises(InputError) as info:
        model.load_pretrained(tmp_path)
    assert str(info.value).startswith(f"{file}: ") and "\n" not in str(info.value)
    assert not ran.exists()
    for name, weight in model.additional_weights().items():
        assert torch.equal(weight, weights[name])


def test_projections_keep_their_precision(loaded, views):
    """With the encoders in bfloat16, as on a GPU, features are still computed and given in float32."""
    model = copy.deepcopy(build_clip(loaded))
    for part in (model.vision_encoder, model.text_encoder, model.recogniser):
        if part is not None:
            part.bfloat16()
    vision, text = features(model, loaded[1].tokenizer, views)
    assert vision.dtype == text.dtype == torch.float32
    assert torch.allclose(vision.norm(dim=-1), torch.ones(len(vision)), atol=1e-5)
