"""The detector: targets, their decoding by the label rule, and its training."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from homework.labels.scene import Kart
from pretrain import cli
from pretrain.boxes import PARTS, STRIDE, BoxDecoder, BoxEncoder, box_loss, box_targets, split_cells
from pretrain.evaluate import accuracy_rows
from pretrain.synthetic_scenes import sample_scenes
from pretrain.targets import KARTS, TRACKS, AnnotatedScene, image_targets
from pretrain.trainer import Training
from pretrain.vision_stages import BoxStage
from tests.pretrain.tiny_run import tiny_config, tiny_config_file
from tests.tiny_models import SCENE

CERTAIN = 12.0  # logit


def ideal_tokens(scenes: list[AnnotatedScene], left: int = 0, width: int = 150) -> torch.Tensor:
    """Build the tokens of an encoder that predicts the targets."""
    targets = box_targets(scenes, left, width)
    sign = lambda values: CERTAIN * (2 * values.float() - 1)
    heat = torch.where(targets["heat"] == 1, CERTAIN, -CERTAIN * (1 - targets["heat"]))
    parts = {"any": heat[..., :1], "large": sign(targets["large"])[..., None], "name": heat[..., 1:]}
    cells = torch.cat([parts.get(name, targets.get(name)) for name in PARTS], dim=-1).flatten(1, 2)
    track = torch.zeros(len(scenes), 1, cells.shape[-1])
    track[torch.arange(len(scenes)), 0, targets["track"]] = CERTAIN
    return torch.cat([cells, track], dim=1)


def annotated(scene) -> AnnotatedScene:
    """Add a kart too small for the label rule beside the centre, where it would be the ego kart."""
    name = next(name for name in KARTS if name not in {kart.name for kart in scene.karts})
    small = (Kart(99, name, (74, 50, 77, 53)),)
    return AnnotatedScene(scene.track, scene.karts, small)


def has_free_peaks(scene: AnnotatedScene) -> bool:
    """Check that no two centres are so near that they share a peak, and none as near to the middle as another."""
    cells = [np.round(np.array(kart.center) / STRIDE) for kart in scene.all_karts]
    return all(abs(a - b).max() > 1 for i, a in enumerate(cells) for b in cells[:i])


def test_boxes_give_the_labels_by_the_rule():
    """From ideal maps all questions are answered right: ego kart, total, track, sides and counts."""
    drawn = [annotated(scene) for scene in sample_scenes(np.random.default_rng(0), 150)]
    scenes = [scene for scene in drawn if has_free_peaks(scene)]
    assert len(scenes) > 30 and max(len(scene.karts) for scene in scenes) > 4
    logits = BoxDecoder().forward_single(ideal_tokens(scenes))
    targets = {name: torch.from_numpy(values) for name, values in image_targets(scenes).items()}
    for row, scene in enumerate(scenes):
        one, target = ({name: values[row] for name, values in part.items()} for part in (logits, targets))
        assert all(right for _, right in accuracy_rows(one, target)), scene
        assert {KARTS[i] for i in (one["relation"][:, 0] > 0).nonzero()} == {kart.name for kart in scene.others}
        for kart in scene.karts:
            y, x = 75 * one["place"][KARTS.index(kart.name)]
            assert (float(x) + 75, float(y) + 50) == pytest.approx(kart.center, abs=0.01)
    assert set(TRACKS) >= {scene.track for scene in scenes}


def test_a_crop_has_the_positions_of_the_view():
    """The grader's centre crop of a view gives the same karts at the same places."""
    scene = AnnotatedScene("abyss", (Kart(0, "tux", (60, 40, 90, 71)), Kart(1, "gnu", (100, 20, 112, 34))))
    whole, crop = (BoxDecoder().forward_single(ideal_tokens([scene], *columns)) for columns in ((0, 150), (25, 100)))
    for name in ("ego", "total", "count"):
        assert torch.allclose(whole[name].softmax(-1), crop[name].softmax(-1), atol=0.01), name
    for name in ("relation", "place"):
        assert torch.allclose(*(one[name][0, KARTS.index("gnu")].sigmoid() for one in (whole, crop)), atol=0.01), name


def test_uncertain_karts_make_uncertain_counts():
    """A kart of probability 1/2 nearer to the middle: each is the ego kart half the time, the total is 1 or 2."""
    near, far = Kart(0, "tux", (68, 44, 80, 56)), Kart(1, "gnu", (20, 40, 50, 70))
    tokens = ideal_tokens([AnnotatedScene("abyss", (near, far))])
    heat = split_cells(tokens)["any"]
    heat[0, round(near.center[1] / STRIDE), round(near.center[0] / STRIDE)] = 0  # a view of `tokens`
    logits = BoxDecoder().forward_single(tokens)
    ego, total = logits["ego"].softmax(-1)[0], logits["total"].softmax(-1)[0]
    assert ego[KARTS.index("tux")] == pytest.approx(0.5, abs=0.01) == ego[KARTS.index("gnu")]
    assert total[1] == pytest.approx(0.5, abs=0.01) == total[2]
    assert logits["relation"][0, KARTS.index("gnu"), 0].sigmoid() == pytest.approx(0.5, abs=0.01)


def test_the_targets_have_the_least_loss():
    """Ideal maps have next to none, and an error in any part has more."""
    scene = annotated(SCENE)
    targets, tokens = box_targets([scene]), ideal_tokens([scene])
    ideal = box_loss(tokens, targets)
    assert all(loss < 0.2 for loss in ideal.values()) and ideal.keys() == {*PARTS, "track"}
    start = 0
    for name, channels in PARTS.items():
        wrong = tokens.clone()
        wrong[:, :-1, start : start + channels] *= -1
        after = box_loss(wrong, targets)
        assert [part for part in ideal if after[part] > ideal[part] + 0.5] == [name]
        start += channels


def test_a_detector_learns_a_view(tiny_data, tmp_path, frames):
    """Its loss falls within some steps on one batch."""
    torch.manual_seed(0)
    config = tiny_config(tmp_path, 'shape = "boxes"')
    stage = BoxStage(config, frames)
    schedule = replace(config.stages["vision"], warmup=1, steps=100)
    training, batch = Training(stage, schedule, {}), stage.sample(np.random.default_rng(0), False)
    losses = []
    for _ in range(8):
        losses.append(stage.train().losses(batch))
        training.update(losses[-1])
    assert sum(losses[-1].values()) < 0.9 * sum(losses[0].values())


def test_images_of_all_sizes_are_encoded(tmp_path):
    """The grader's crop has fewer columns; in eval mode there are two passes."""
    encoder = BoxEncoder(tiny_config(tmp_path).vision_config)
    assert encoder(torch.zeros(2, 3, 100, 150)).last_hidden_state.shape == (2, 1, 25 * 38 + 1, 24)
    assert encoder.eval()(torch.zeros(2, 3, 192, 192)).last_hidden_state.shape == (2, 2, 25 * 25 + 1, 24)


def test_all_stages_run_on_boxes(call, tiny_data, tmp_path):
    """The same command trains them, without a fovea; nothing is exported, and `eval` reads the run."""
    file = tiny_config_file(tmp_path, 'shape = "boxes"')
    folders = "--data", tiny_data, "--run-dir", tmp_path / "run"
    commands = cli.run, cli.eval, cli.ablate
    status, out, err = call(commands, "run", "--config", file, "--frames", "train", *folders)
    assert status == 0 and "only a model of shape cells" in out, err
    assert {one.stem for one in (tmp_path / "run").glob("*.pt")} == {"vision", "read", "text"}
    status, out, err = call(commands, "eval", tmp_path / "run", "--data", tiny_data)
    assert status == 0 and "total of 3 karts" in out, err
    status, _, err = call(commands, "ablate", "--config", file, *folders)
    assert status == 1 and "only a model of shape cells has these parts" in err
