"""The decoder of the shape `boxes`: karts, and their labels by the label rule."""

import itertools

import pytest
import torch

from homework.labels.scene import Kart
from homework.models.tux_nano.connector import SIDES, offset_zero_logit
from pretrain.box_decoder import ZERO_COUNT_BIAS, BoxDecoder, Detections, apply_label_rule, detect_karts
from pretrain.boxes import GRID_ROWS, PARTS, BoxEncoder
from pretrain.targets import KARTS, MAX_COUNT, TRACKS, UNKNOWN, AnnotatedScene, image_targets
from tests.pretrain.ideal_tokens import CERTAIN, COLUMNS, ideal_tokens, random_scenes, visible_part
from tests.pretrain.tiny_run import tiny_config
from tests.tiny_models import SCENE

NUM_COUNTS = MAX_COUNT + 1
GNU, TUX = KARTS.index("gnu"), KARTS.index("tux")


def predict(*karts: Kart) -> dict[str, torch.Tensor]:
    """Return the predictions of ideal tokens of one scene."""
    logits = BoxDecoder().forward_single(ideal_tokens([AnnotatedScene("abyss", karts)]))
    return {name: values[0] for name, values in logits.items()}


@pytest.mark.parametrize("columns", COLUMNS.values(), ids=COLUMNS)
def test_ideal_cells_give_the_labels(columns):
    """Ego kart, total, track, counts, relations and places are those of the rule, in the view and in a crop of it."""
    scenes = random_scenes(150)
    assert len(scenes) > 50 and {len(scene.karts) for scene in scenes} >= {1, 4, 8}
    logits = BoxDecoder().forward_single(ideal_tokens(scenes, *columns))
    shown = [visible_part(scene, *columns) for scene in scenes]
    targets = {name: torch.from_numpy(values) for name, values in image_targets(shown).items()}
    # half a pixel makes a side likely, not certain; and the offset favours larger counts
    logits["count"] = offset_zero_logit(logits["count"], -ZERO_COUNT_BIAS)
    for name in ("ego", "total", "track", "count"):
        known = targets[name] != UNKNOWN
        assert known.sum() > 40 and torch.equal(logits[name].argmax(-1)[known], targets[name][known]), name
    relation = targets["relation"]
    assert torch.equal(logits["relation"][relation != UNKNOWN] > 0, relation[relation != UNKNOWN] == 1)
    for place, scene in zip(logits["place"], shown, strict=True):
        for kart in scene.karts:
            y, x = 75 * place[KARTS.index(kart.name)]
            assert (float(x) + 75, float(y) + 50) == pytest.approx(kart.center, abs=0.1), scene


@pytest.mark.parametrize(
    ("shift", "sides"),
    [
        ((0, 0), ("right", "behind")),  # as the label rule has it where centres are equal
        ((-0.5, 0), ("left", "behind")),
        ((0.5, 0), ("right", "behind")),
        ((0, -0.5), ("right", "front")),
        ((0, 0.5), ("right", "behind")),
    ],
)
def test_half_a_pixel_decides_the_side(shift, sides):
    """Centres are multiples of half a pixel."""
    center = torch.tensor([[[8.0, 8.0], [8.0 + shift[1], 8.0 + shift[0]]]])
    center[0, 0] -= 1e-4  # the first is the ego kart
    names = torch.eye(len(KARTS))[None, :2]
    logits = apply_label_rule(Detections(torch.ones(1, 2), names, center), NUM_COUNTS)
    assert {side for side, count in zip(SIDES, logits["count"][0].argmax(-1), strict=True) if count == 1} == set(sides)
    assert logits["relation"][0, 1, 0] > 0
    assert (logits["relation"][0, 1, 1:] > 0).tolist() == ["left" in sides, "front" in sides]


def test_karts_too_small_for_the_rule_do_not_count():
    """Not even as the ego kart, if they are nearest to the image's centre."""
    far, near = Kart(0, "tux", (20, 30, 40, 50)), Kart(1, "gnu", (73, 48, 77, 52))
    logits = predict(far, near._replace(box=(72, 47, 78, 53)))
    assert logits["total"].argmax() == 2 and logits["ego"].argmax() == GNU  # if it were large enough
    scene = AnnotatedScene("abyss", (far,), (near,))
    logits = BoxDecoder().forward_single(ideal_tokens([scene]))
    assert logits["total"].argmax() == 1 and logits["ego"].argmax() == TUX
    assert (logits["relation"][..., 0] < 0).all()


def make_cells(*karts: tuple[int, int, float, dict[str, float]]) -> dict[str, torch.Tensor]:
    """Build the cells of a view with (row, column, logit of a centre, logits of names), all large enough."""
    shape = 1, GRID_ROWS, 38
    cells = {name: torch.zeros(*shape, channels) for name, channels in PARTS.items()}
    cells["heat"] -= CERTAIN
    cells["large"] += CERTAIN
    for row, column, heat, names in karts:
        cells["heat"][0, row, column] = heat
        for name, logit in names.items():
            cells["name"][0, row, column, KARTS.index(name)] = logit
    return cells


def found(cells: dict[str, torch.Tensor]) -> list[tuple[str, float]]:
    """Return the names and certainties of detections that are not negligible, the nearest to the centre first."""
    detections = detect_karts(cells)
    rows = zip(detections.names[0].argmax(-1), detections.certainty[0], strict=True)
    return [(KARTS[name], round(float(certainty), 2)) for name, certainty in rows if certainty > 0.01]


@pytest.mark.parametrize("step", [(0, 1), (1, 0), (1, 1), (-1, 1)])
def test_neighbouring_cells_hold_two_karts_if_their_names_differ(step):
    """Far karts are 4 pixels apart; two cells of one name are one kart, with the probability of both."""
    first, second = (10, 20), (10 + step[0], 20 + step[1])
    tux, gnu = {"tux": CERTAIN}, {"gnu": CERTAIN}
    assert sorted(found(make_cells((*first, 3.0, tux), (*second, 2.0, gnu)))) == [("gnu", 0.88), ("tux", 0.95)]
    assert found(make_cells((*first, -2.0, tux), (*second, -1.0, tux))) == [("tux", 0.39)]


def test_uncertain_karts_match_an_enumeration_of_all_outcomes():
    """The probabilities of each ego kart, total and other kart are the sums over which karts are there."""
    certainty = torch.tensor([[0.6, 0.3, 0.9, 0.5]])
    center = torch.tensor([[[1.0, 2.0], [-5, 9], [20, -7], [8, 40]]])  # the nearest first
    logits = apply_label_rule(Detections(certainty, torch.eye(len(KARTS))[None, :4], center), 5)
    ego, other, total = torch.zeros(4), torch.zeros(4), torch.zeros(5)
    for outcome in itertools.product((False, True), repeat=4):
        there = torch.tensor(outcome)
        prob = torch.where(there, certainty[0], 1 - certainty[0]).prod()
        total[sum(outcome)] += prob
        if any(outcome):
            ego[outcome.index(True)] += prob
            there[outcome.index(True)] = False
            other += prob * there
    assert torch.allclose(logits["total"].exp()[0], total, atol=1e-5)
    assert torch.allclose(logits["ego"].exp()[0, :4], ego, atol=1e-5)
    assert torch.allclose(logits["relation"][0, :4, 0].sigmoid(), other.clamp(min=1e-4), atol=1e-5)


def test_a_kart_of_uncertain_side_is_counted_by_halves():
    """Where either of two karts may be the ego kart, a third between them is left of it as often as right."""
    center = torch.tensor([[[0.0, 10.0], [0.0, -10.5], [0.0, 20.0], [11.0, 0.0]]])
    certainty = torch.tensor([[0.5, 1.0, 0.0, 1.0]])
    logits = apply_label_rule(Detections(certainty, torch.eye(len(KARTS))[None, :4], center), NUM_COUNTS)
    present, left, front = logits["relation"][0, 3].sigmoid()
    assert present > 0.99 and left == pytest.approx(0.5, abs=0.01) and front < 0.01


def test_a_view_and_its_mirror_image_get_mirrored_predictions(tmp_path):
    """Averaging both passes makes predictions symmetric; those of one pass are not."""
    torch.manual_seed(0)
    encoder, view = BoxEncoder(tiny_config(tmp_path).vision_config).eval(), torch.randn(2, 3, 100, 150)
    decoder = BoxDecoder()
    with torch.no_grad():
        averaged, mirrored = (decoder(encoder(image).last_hidden_state) for image in (view, view.flip(-1)))
        single = decoder.forward_single(encoder(view).last_hidden_state[:, 0])
    left, right = averaged["count"][:, 0], averaged["count"][:, 1]
    assert torch.allclose(mirrored["count"][:, 0], right, atol=1e-4) and not torch.allclose(left, right, atol=1e-3)
    for name, signs in (("relation", [1, -1, 1]), ("place", [1, -1]), ("ego", [1]), ("total", [1]), ("track", [1])):
        assert torch.allclose(mirrored[name], averaged[name] * torch.tensor(signs), atol=1e-4), name
    assert not torch.allclose(single["relation"], averaged["relation"], atol=1e-3)


def test_the_two_passes_of_a_scene_agree():
    """From ideal cells of a view and of its mirror image, the average has the view's predictions."""
    passes = torch.stack([ideal_tokens([scene])[0] for scene in (SCENE, SCENE.mirror())])[None]
    averaged, single = BoxDecoder()(passes), BoxDecoder().forward_single(passes[:, 0])
    for name, values in single.items():
        squash = torch.sigmoid if name == "relation" else torch.exp
        assert torch.allclose(squash(averaged[name]), squash(values), atol=0.01), name


def test_caption_log_odds_are_those_of_the_true_captions():
    """They are high for ego kart, total, track and each kart's sides, and 0 elsewhere."""
    predictor = BoxDecoder()
    log_odds = predictor.caption_log_odds(ideal_tokens([SCENE])[:, None])[0]
    ego, total, track, sides = log_odds.split([len(KARTS), NUM_COUNTS, len(TRACKS), len(SIDES) * len(KARTS)])
    assert [part.argmax().item() for part in (ego, total, track)] == [TUX, 3, TRACKS.index("abyss")]
    expected = torch.zeros(len(KARTS), len(SIDES))
    expected[GNU, [0, 2]] = expected[KARTS.index("xue"), [1, 3]] = log_odds.max()
    assert torch.allclose(sides.unflatten(0, (len(KARTS), len(SIDES))), expected, atol=0.5) and log_odds.max() > 10
    assert log_odds.numel() == predictor.num_captions and (log_odds > 1).sum() == 3 + 4
