"""TuxNano's connector: fused predictions, and their embedding as image tokens."""

import itertools

import pytest
import torch

from homework.models.tux_nano.connector import (
    KART_FEATURES,
    MIN_COUNT_PROB,
    SIDES,
    ZERO_COUNT_LOGIT_BIAS_EVAL,
    PredictionConnector,
    fuse_global_and_cell_logits,
    perturb_logits,
    poisson_binomial,
)
from homework.models.tux_nano.vision import NUM_FOVEAL_TOKENS, VisionEncoder
from pretrain.dense_heads import DenseHeads, copy_heads_to_connector, fuse_logits, run_heads
from pretrain.targets import KARTS, MAX_COUNT, TRACKS
from tests.tiny_models import CONFIG, TEXT, VISION

WIDTH, NUM_COUNTS = VISION.hidden_size, MAX_COUNT + 1


@pytest.fixture
def connector() -> PredictionConnector:
    """A connector for the game's karts and tracks, on the tiny vision encoder."""
    torch.manual_seed(0)
    return PredictionConnector(CONFIG).eval()


def test_poisson_binomial_matches_an_enumeration_of_all_outcomes():
    """With fewer counts than events, the probability of larger counts is left out."""
    probabilities = torch.tensor([[0.1, 0.5, 0.9, 0.3], [0.0, 1.0, 1.0, 0.2]], dtype=torch.float64)
    expected = torch.zeros(2, 5, dtype=torch.float64)
    for outcome in itertools.product((0, 1), repeat=4):
        occurred = torch.tensor(outcome, dtype=torch.bool)
        expected[:, sum(outcome)] += torch.where(occurred, probabilities, 1 - probabilities).prod(1)
    assert torch.allclose(poisson_binomial(probabilities, 5), expected)
    assert torch.allclose(poisson_binomial(probabilities, 3), expected[:, :3])


def uninformative_logits(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Build undecided logits of 3 absent karts, 2 tracks, 5 counts and 4 cells, except for `changes`."""
    image_logits = {
        "ego": torch.zeros(1, 3),
        "total": torch.zeros(1, 5),
        "track": torch.zeros(1, 2),
        "count": torch.zeros(1, len(SIDES), 5),
        "relation": torch.full((1, 3, 3), -9.0),
    }
    return image_logits | {"kart": torch.full((1, 4, 4), -9.0), "side": torch.zeros(1, 4, 2)} | changes


def test_counts_follow_from_the_karts_present():
    """With undecided count heads: two karts in front of the ego kart, one of them left of it and one right."""
    relation = torch.tensor([[[-9.0, 0, 0], [9.0, 9, 9], [9.0, -9, 9]]])
    logits = fuse_global_and_cell_logits(**uninformative_logits(relation=relation))
    assert logits["total"].argmax(-1).tolist() == [3]
    assert logits["count"].argmax(-1).tolist() == [[1, 1, 2, 0]]
    # a confident count head outweighs them
    confident = torch.zeros(1, 5)
    confident[0, 4] = 3 - torch.tensor(MIN_COUNT_PROB).log()
    logits = fuse_global_and_cell_logits(**uninformative_logits(relation=relation, total=confident))
    assert logits["total"].argmax(-1).tolist() == [4]


def test_cells_decide_sides_and_ego_kart_where_the_image_logits_are_undecided():
    """A kart is on the side that its own cell predicts; the ego kart is the kart of the ego cell."""
    kart, side = torch.full((1, 4, 4), -9.0), torch.zeros(1, 4, 2)
    kart[0, 1, 0], side[0, 1] = 5, torch.tensor([2.0, -2.0])  # the first kart, in the second cell
    kart[0, 3, 1], side[0, 3] = 5, torch.tensor([-2.0, 2.0])
    kart[0, 2, 2], kart[0, 2, 3] = 5, 5  # the third kart is the ego kart
    relation = torch.zeros(1, 3, 3)
    logits = fuse_global_and_cell_logits(**uninformative_logits(kart=kart, side=side, relation=relation))
    assert (logits["relation"][0, :2, 1:] > 0).tolist() == [[True, False], [False, True]]
    assert logits["ego"].argmax(-1).tolist() == [2]


def test_a_kart_is_placed_at_its_cell(connector):
    """40 pixels right of the middle is a cell's centre in a view, and lies between two cells in the grader's crop."""
    for columns, at in ((10, 7), (7, 5.5)):
        tokens = torch.zeros(1, 1, 2 + 7 * columns + NUM_FOVEAL_TOKENS, WIDTH)
        connector.prediction_heads.grid_head.weight.data[3] = 100 / WIDTH
        place = {}
        for column in (int(at), int(at + 0.5)):
            with_kart = tokens.clone()
            with_kart[0, 0, 2 + 3 * columns + column] = 1
            with torch.no_grad():
                place[column] = connector.prediction_heads(with_kart)["place"][0, 3] * 75
        y, x = torch.stack(list(place.values())).mean(0).tolist()
        assert (y, x) == pytest.approx((0, 40), abs=1)


def test_a_prediction_changes_its_own_token(connector):
    """A kart changes its token and those of the counts, a track only the track's; a crop has as many tokens."""
    tokens, crop = (torch.randn(1, 1, 2 + cells + NUM_FOVEAL_TOKENS, WIDTH) for cells in (70, 49))
    bias, first_track = connector.prediction_heads.global_head.bias, len(KARTS) + NUM_COUNTS
    with torch.no_grad():
        before = connector(tokens)
        assert before.shape == connector(crop).shape == (1, len(KARTS) + 1 + len(SIDES) + 1, TEXT.hidden_size)
        bias[first_track + 3] += 5
        assert changed_tokens(before, connector(tokens)) == [len(KARTS) + 1 + len(SIDES)]
        bias[first_track + 3] -= 5
        bias[-3 * (len(KARTS) - 4)] += 5  # kart 4 is present
        counts = set(range(len(KARTS), len(KARTS) + 1 + len(SIDES)))
        assert set(changed_tokens(before, connector(tokens))) == {4} | counts
    assert connector.kart_projection.in_features == len(KART_FEATURES)


def changed_tokens(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    """Return the indices of the tokens that differ."""
    return ((before - after).abs() > 1e-5).any(-1)[0].nonzero().flatten().tolist()


def test_connector_predicts_as_the_pretraining_heads_do(connector):
    """So `pretrain eval` measures the predictions that the language model gets."""
    encoder, heads = VisionEncoder(VISION).eval(), DenseHeads(VISION).eval()
    copy_heads_to_connector(connector.prediction_heads, heads)
    with torch.no_grad():
        logits, tokens = run_heads(encoder, heads, torch.randn(2, 3, 100, 150))
        predictions = connector.prediction_heads.forward_single(tokens)
    assert predictions.keys() == {"ego", "total", "track", "count", "relation", "place"}
    for name, expected in fuse_logits(logits).items():
        assert torch.allclose(predictions[name], expected, atol=1e-5), name


def test_flip_tta_makes_predictions_symmetric(connector):
    """A view and its mirror image get the same predictions up to left and right; in training there is a single pass."""
    encoder, view = VisionEncoder(VISION), torch.randn(2, 3, 100, 150)
    heads = connector.prediction_heads
    with torch.no_grad():
        for weight in heads.parameters():
            weight.normal_(std=0.3)
        assert encoder.train()(view).last_hidden_state.shape[1] == 1
        averaged, mirrored = (heads(encoder.eval()(image).last_hidden_state) for image in (view, view.flip(-1)))
        single = heads.forward_single(encoder(view).last_hidden_state[:, 0])
    left, right = averaged["count"][:, 0], averaged["count"][:, 1]
    assert torch.allclose(mirrored["count"][:, 0], right, atol=1e-4) and not torch.allclose(left, right, atol=0.01)
    for name, signs in (("relation", [1, -1, 1]), ("place", [1, -1]), ("ego", [1]), ("total", [1]), ("track", [1])):
        assert torch.allclose(mirrored[name], averaged[name] * torch.tensor(signs), atol=1e-4), name
        assert not torch.allclose(single[name], averaged[name], atol=1e-3), name


def test_caption_log_odds_are_those_of_the_predicted_captions(connector):
    """With confident heads they are high for ego kart, total, track and each kart's sides, and 0 elsewhere."""
    heads, tokens = connector.prediction_heads, torch.zeros(1, 1, 2 + 49 + NUM_FOVEAL_TOKENS, WIDTH)
    num_karts, num_tracks = len(KARTS), len(TRACKS)
    with torch.no_grad():
        for weight in heads.parameters():
            weight.zero_()
        heads.global_head.bias[[5, num_karts + 3, num_karts + NUM_COUNTS + 7]] = 20
        relation = heads.global_head.bias[-3 * num_karts :].unflatten(0, (num_karts, 3))
        relation[:, 0] = -20
        # kart 2 is left of the ego kart and behind it; kart 9 is right of it, its other side is undecided
        relation[2], relation[9] = torch.tensor([20.0, 20, -20]), torch.tensor([20.0, -20, 0])
        log_odds = heads.caption_log_odds(tokens)[0]
    ego, total, track, sides = log_odds.split([num_karts, NUM_COUNTS, num_tracks, 4 * num_karts])
    highest = log_odds.max()
    assert [part.argmax().item() for part in (ego, total, track)] == [5, 3, 7]
    expected = torch.zeros(num_karts, len(SIDES))
    expected[2, [0, 3]], expected[9, 1], expected[9, [2, 3]] = highest, highest, highest / 2
    assert torch.allclose(sides.unflatten(0, (num_karts, len(SIDES))), expected, atol=0.01) and highest > 10
    assert log_odds.numel() == heads.num_captions and (log_odds > 0.01).sum() == 3 + 5


def test_predictions_are_perturbed_in_training_only(connector):
    """Perturbation lowers the confidence by another factor for each image, and mostly keeps the likeliest class."""
    tokens = torch.randn(2, 1, 2 + 70 + NUM_FOVEAL_TOKENS, WIDTH)
    with torch.no_grad():
        assert torch.equal(connector(tokens), connector(tokens))
        connector.train()
        assert not torch.allclose(connector(tokens), connector(tokens), atol=0.01)
    confident = 6 * torch.eye(20).repeat(100, 1)  # 2,000 views of one class each
    perturbed = perturb_logits(confident)
    max_probs = perturbed.softmax(-1).amax(-1)
    assert max_probs.min() < 0.5 < 0.9 < confident.softmax(-1).amax(-1).min()
    assert (perturbed.argmax(-1) == confident.argmax(-1)).float().mean() > 0.6


def test_inference_lowers_the_logit_of_zero_counts(connector, monkeypatch):
    """By an offset that training does not add, beside that of the fusion; logits of other counts are unchanged."""
    tokens = torch.randn(2, 1, 2 + 70 + NUM_FOVEAL_TOKENS, WIDTH)
    inputs = []

    def record(counts: torch.Tensor) -> torch.Tensor:
        inputs.append(counts)
        return counts.new_zeros(2, 5, TEXT.hidden_size)

    monkeypatch.setattr(connector.count_projection, "forward", record)
    monkeypatch.setattr("homework.models.tux_nano.connector.perturb_logits", lambda logits: logits)
    with torch.no_grad():
        count = connector.prediction_heads(tokens)["count"]
        connector.train()(tokens), connector.eval()(tokens)
    in_training, at_inference = (counts[:, 1:].log() for counts in inputs)
    assert torch.allclose(in_training, count.log_softmax(-1), atol=1e-3)
    shift = at_inference - in_training
    assert torch.allclose(shift[..., 0] - shift[..., 1], torch.tensor(ZERO_COUNT_LOGIT_BIAS_EVAL), atol=1e-3)
    assert torch.allclose(shift[..., 1:], shift[..., 1:2].expand_as(shift[..., 1:]), atol=1e-3)
