"""The shape `boxes`: its encoder, its losses, and its training."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from homework.labels.scene import Kart
from pretrain import cli
from pretrain.box_targets import box_targets
from pretrain.boxes import GRID_ROWS, INITIAL_HEAT_LOGIT, PARTS, BoxEncoder, box_loss
from pretrain.targets import TRACKS, AnnotatedScene
from pretrain.trainer import Training
from pretrain.vision_stages import BoxStage
from tests.pretrain.ideal_tokens import COLUMNS, ideal_tokens, random_scenes
from tests.pretrain.tiny_run import tiny_config, tiny_config_file
from tests.tiny_models import SCENE

ANNOTATED = replace(SCENE, small=(Kart(99, "kiki", (74, 50, 77, 53)),))


def cells_of(tokens: torch.Tensor, part: str) -> torch.Tensor:
    """Return a view of the channels of a part, [n, rows, columns, channels]."""
    start = sum(channels for name, channels in list(PARTS.items())[: list(PARTS).index(part)])
    return tokens[:, :-1, start : start + PARTS[part]].unflatten(1, (GRID_ROWS, -1))


@pytest.mark.parametrize("columns", COLUMNS.values(), ids=COLUMNS)
def test_ideal_tokens_have_no_loss(columns):
    """In random scenes and in crops of them."""
    scenes = random_scenes(40)
    losses = box_loss(ideal_tokens(scenes, *columns), box_targets(scenes, *columns))
    assert losses.keys() == {*PARTS, "track"} and all(0 <= loss < 0.01 for loss in losses.values())


@pytest.mark.parametrize("part", PARTS)
def test_an_error_in_a_part_is_a_loss_of_that_part(part):
    targets, tokens = box_targets([ANNOTATED]), ideal_tokens([ANNOTATED])
    ideal = box_loss(tokens, targets)
    cells_of(tokens, part).neg_()
    after = box_loss(tokens, targets)
    assert [name for name in ideal if after[name] > ideal[name] + 0.3] == [part]


def test_the_track_is_read_off_the_last_token():
    targets, tokens = box_targets([SCENE]), ideal_tokens([SCENE])
    tokens[:, -1] = 0
    loss = box_loss(tokens, targets)["track"]
    assert loss == pytest.approx(np.log(len(TRACKS)), rel=1e-4)


def test_losses_are_per_kart():
    """A view beside one without karts has the loss that it has alone; every kart weighs as much as another."""
    empty = AnnotatedScene("abyss", ())
    tokens = ideal_tokens([ANNOTATED, empty])
    for part in ("size", "large", "name"):
        cells_of(tokens, part).mul_(0.5)
    both, alone = (box_loss(tokens[:n], box_targets([ANNOTATED, empty][:n])) for n in (2, 1))
    for part in ("size", "large", "name", "offset"):
        assert both[part] == pytest.approx(alone[part].item(), abs=1e-5)
    assert alone["size"] == pytest.approx(np.log([30, 31, 30, 28, 37, 31, 3, 3]).sum() / 2 / 4, abs=1e-4)


def test_unknown_names_and_tracks_have_no_loss():
    """A kart or a track that the game does not have says nothing about the known ones; losses stay finite."""
    scene = AnnotatedScene("nowhere", (Kart(0, "sonic", (60, 40, 90, 70)),))
    tokens = torch.randn(1, GRID_ROWS * 38 + 1, sum(PARTS.values()))
    losses = box_loss(tokens, box_targets([scene]))
    assert losses["name"] == losses["track"] == 0 < losses["heat"]
    nothing = box_loss(tokens, box_targets([AnnotatedScene("abyss", ())]))
    assert nothing["size"] == nothing["large"] == 0 and all(loss.isfinite() for loss in nothing.values())


def test_a_peak_next_to_a_centre_costs_less_than_one_far_away():
    """A centre in the next cell is nearly right."""
    scene = AnnotatedScene("abyss", (Kart(0, "tux", (45, 20, 105, 80)),))
    losses = {}
    for column in (19, 20, 30):  # the centre is (75, 50), in cell 19
        tokens = ideal_tokens([scene])
        cells_of(tokens, "heat")[0, 12, column] = 3
        losses[column] = box_loss(tokens, box_targets([scene]))["heat"].item()
    assert losses[20] < 0.02 < losses[19] < 0.1 < 2 < losses[30]


def test_a_new_encoder_finds_no_karts(tmp_path):
    """Its heat map begins near 0, so that the many cells without a kart do not dominate the first steps."""
    stage = BoxStage(tiny_config(tmp_path, 'shape = "boxes"')).eval()
    assert stage.vision_encoder.head.bias[0] == INITIAL_HEAT_LOGIT and not stage.vision_encoder.head.bias[1:].any()
    logits = stage.predict(0.1 * torch.randn(2, 3, 100, 150))
    assert logits["total"].argmax(-1).tolist() == [0, 0]


def test_a_detector_learns_a_view(tiny_data, tmp_path, frames):
    """Its loss falls within some steps on one batch."""
    torch.manual_seed(0)
    config = tiny_config(tmp_path, 'shape = "boxes"')
    stage = BoxStage(config, frames)
    schedule = replace(config.stages["vision"], warmup=1, steps=100)
    training, batch = Training(stage, schedule, {}), stage.sample(np.random.default_rng(0), as_rendered=False)
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
