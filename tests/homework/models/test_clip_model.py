"""Test models.clip: features, loss, and the weights beside the adapter."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from homework.models import clip
from homework.models.clip import ADDITIONAL_WEIGHTS, LABEL_SMOOTHING, class_prior_logits, tokenize
from homework.models.images import clip_pixels
from homework.utils.errors import InputError
from homework.utils.images import open_image
from tests.tiny_models import TEXTS, build_clip, features

EVEN_PRIOR = torch.zeros(())  # prior logit of captions that are true of half of the images


# which of five captions are true of which of four images
TARGETS = torch.tensor([[1.0, 1, 0, 0, 0], [1, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 1, 0, 0, 1]])


def test_perfect_features_have_the_least_loss(loaded_nano):
    """The loss of label smoothing remains; equally many captions are true of each image, so all cosines are equal."""
    model, targets = build_clip(loaded_nano), TARGETS
    text = torch.eye(targets.shape[1])
    vision = nn.functional.normalize(targets, dim=-1)
    label_logit = math.log(2 / LABEL_SMOOTHING - 1)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(2 * label_logit / vision.max().item()))  # a false pair's cosine is 0
        model.logit_bias.fill_(-label_logit)
    least = targets.shape[1] * nn.functional.binary_cross_entropy(*[torch.tensor(LABEL_SMOOTHING / 2)] * 2).item()
    assert model.loss(vision, text, targets, EVEN_PRIOR).item() == pytest.approx(least, rel=1e-5)
    # one true pair labelled false costs more
    wrong = targets.clone()
    wrong[0, targets[0].argmax()] = 0
    assert model.loss(vision, text, wrong, EVEN_PRIOR).item() > least + 2 / len(targets)


def test_the_loss_has_no_false_negatives(loaded_nano):
    """The gradient moves an image towards each caption that is true of it, and away from all others."""
    model, targets = build_clip(loaded_nano), TARGETS
    text = torch.eye(targets.shape[1])
    vision = torch.zeros(targets.shape, requires_grad=True)
    model.loss(vision, text, targets, EVEN_PRIOR).backward()
    assert torch.equal(vision.grad < 0, targets == 1)


def test_caption_types_that_are_rarely_true_are_not_less_likely(loaded_nano):
    """Uninformative image features give each caption type the mean logit 0, however often its captions are true."""
    targets, types = torch.zeros(1000, 3), ["relation", "total", "total"]
    targets[:10, 0], targets[:700, 1], targets[700:, 2] = 1, 1, 1
    model, text = build_clip(loaded_nano), torch.eye(3)
    vision = torch.zeros(targets.shape, requires_grad=True)
    model.loss(vision, text, targets, class_prior_logits(targets.mean(0), types)).backward()
    relation, one, two = vision.grad.sum(0)
    assert abs(relation) < 1e-3 and abs(one + two) < 1e-3
    assert one < 0 < two  # within its type, what is true more often becomes more likely
    assert class_prior_logits(torch.zeros(2), types[:2]).isfinite().all()


def test_padding_side_does_not_matter(loaded):
    """Texts padded on the left, on the right, or not at all have the same features."""
    model, tokenizer = build_clip(loaded), loaded[1].tokenizer
    alone, found = [tokenize([text], tokenizer) for text in TEXTS], []
    length = max(encoded["input_ids"].shape[1] for encoded in alone)
    with torch.no_grad():
        for is_left in (False, True):
            padding = [(length - encoded["input_ids"].shape[1]) * is_left for encoded in alone]
            rows = [
                {k: nn.functional.pad(v, (n, length - v.shape[1] - n)) for k, v in encoded.items()}
                for encoded, n in zip(alone, padding, strict=True)
            ]
            batch = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
            assert (batch["attention_mask"] == 0).any()
            found.append(model.encode_text(**batch))
        alone = torch.cat([model.encode_text(**encoded) for encoded in alone])
        assert torch.allclose(model.encode_text(**tokenize(TEXTS, tokenizer)), alone, atol=1e-5)
    assert torch.allclose(found[0], found[1], atol=1e-5) and torch.allclose(found[0], alone, atol=1e-5)
    assert (found[0] @ found[0].T - torch.eye(3)).abs().max() > 0.01
    assert not torch.allclose(found[0][0], found[0][1], atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_pixels_of_any_float_type(loaded, views, dtype):
    """Pixels of any float type give unit vectors that are about equal."""
    model, tokenizer = build_clip(loaded), loaded[1].tokenizer
    pixels = clip_pixels([open_image(path) for path in views])
    with torch.no_grad():
        vision, text, scale = model(pixels.to(dtype), **tokenize(TEXTS, tokenizer))
        expected = model.encode_image(pixels)
    assert vision.shape == (4, 128) and text.shape == (3, 128) and scale.item() == pytest.approx(10)
    for feature in (vision, text):
        assert torch.allclose(feature.norm(dim=-1), torch.ones(len(feature)), atol=1e-5)
    assert (vision * expected).sum(-1).min() > 0.99
    assert not torch.allclose(vision[0], vision[1], atol=1e-2)


def test_additional_weights_round_trip(loaded, tmp_path):
    """All weights that are not the base's are written and read."""
    first, second = build_clip(loaded, seed=1), build_clip(loaded)
    assert not torch.equal(first.text_projection.weight, second.text_projection.weight)
    first.save_pretrained(tmp_path)
    second.load_pretrained(tmp_path)
    for name, weight in first.additional_weights().items():
        assert torch.equal(weight, second.additional_weights()[name]), name
    assert not any("encoder" in name or "heads" in name for name in first.additional_weights())


class Code:
    """Create a file when a pickle of this is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("damage", ["missing", "broken", "other shapes", "other names", "not a dict", "code"])
def test_broken_additional_weights(loaded_nano, tmp_path, damage):
    """Weights that are broken or of another base give one line that names the file; code in it is not run."""
    model, file, ran = build_clip(loaded_nano), tmp_path / ADDITIONAL_WEIGHTS, tmp_path / "ran"
    weights = model.additional_weights()
    contents = {
        "other shapes": weights | {"text_projection.weight": torch.zeros(128, 576)},
        "other names": {f"x.{name}": weight for name, weight in weights.items()},
        "not a dict": [1],
        "code": weights | {"logit_bias": Code(ran)},
    }
    if damage == "broken":
        file.write_bytes(b"broken")
    elif damage != "missing":
        torch.save(contents[damage], file)
    with pytest.raises(InputError) as info:
        model.load_pretrained(tmp_path)
    assert str(info.value).startswith(f"{file}: ") and "\n" not in str(info.value)
    assert not ran.exists() and "weights_only" not in str(info.value)  # torch's advice would run the code
    for name, weight in model.additional_weights().items():
        assert torch.equal(weight, weights[name])


def test_projections_keep_their_precision(loaded, views):
    """With the encoders in bfloat16, as on a GPU, features are still projected in float32."""
    model = copy.deepcopy(build_clip(loaded))
    for part in (model.vision_encoder, model.text_encoder, model.prediction_heads):
        if part is not None:
            part.bfloat16()
    vision, text = features(model, loaded[1].tokenizer, views)
    assert vision.dtype == text.dtype == torch.float32
    assert torch.allclose(vision.norm(dim=-1), torch.ones(len(vision)), atol=1e-5)


def test_single_images_leave_one_thread_and_batches_bring_all_back(loaded_nano, views, monkeypatch):
    """A grader gives one image per call: neither the model nor the caller's own code then waits for threads."""
    monkeypatch.setattr(clip, "NUM_THREADS", 2)
    model, text = build_clip(loaded_nano), tokenize(TEXTS, loaded_nano[1].tokenizer)
    pixels, threads = clip_pixels([open_image(view) for view in views[:2]]), []
    with torch.inference_mode():
        for images in (pixels, pixels[:1], pixels):
            model(images, **text)
            threads.append(torch.get_num_threads())
    torch.set_num_threads(1)
    assert threads == [2, 1, 2]
