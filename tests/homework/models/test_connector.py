"""The embedded base's connector: what it tells the text model of a view."""

import itertools

import pytest
import torch

from homework.models.tux_nano.connector import (
    FLOOR,
    KART_FEATURES,
    SIDES,
    ZERO_COUNT_LOGIT_BIAS_EVAL,
    PredictionConnector,
    PredictionHeads,
    fuse_global_and_cell_logits,
    perturb_logits,
    poisson_binomial,
)
from homework.models.tux_nano.vision import NUM_FOVEAL_TOKENS, VisionEncoder
from pretrain.dense_heads import DenseHeads, copy_heads_to_connector, fuse_logits, run_heads
from pretrain.targets import KARTS, MAX_COUNT, TRACKS
from tests.tiny_models import VISION

WIDTH, COUNTS = VISION.hidden_size, MAX_COUNT + 1


@pytest.fixture
def readout() -> PredictionConnector:
    """A connector of the game's karts and tracks, for the small tower."""
    torch.manual_seed(0)
    sizes = {"num_karts": len(KARTS), "num_tracks": len(TRACKS), "num_counts": COUNTS}
    return PredictionConnector(PredictionHeads(2, WIDTH, **sizes), text_size=48, **sizes).eval()


def test_number_of_is_every_outcome_summed():
    """Poisson's binomial distribution, against all outcomes one by one; what has no place is left out."""
    chances = torch.tensor([[0.1, 0.5, 0.9, 0.3], [0.0, 1.0, 1.0, 0.2]], dtype=torch.float64)
    expected = torch.zeros(2, 5, dtype=torch.float64)
    for outcome in itertools.product((0, 1), repeat=4):
        happened = torch.tensor(outcome, dtype=torch.bool)
        expected[:, sum(outcome)] += torch.where(happened, chances, 1 - chances).prod(1)
    assert torch.allclose(poisson_binomial(chances, 5), expected)
    assert torch.allclose(poisson_binomial(chances, 3), expected[:, :3])


def said(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """What heads say that know nothing, of 3 karts, 2 tracks, 5 numbers and 4 cells; but for the changes."""
    of_summary = {
        "ego": torch.zeros(1, 3),
        "total": torch.zeros(1, 5),
        "track": torch.zeros(1, 2),
        "count": torch.zeros(1, len(SIDES), 5),
        "relation": torch.full((1, 3, 3), -9.0),
    }
    return of_summary | {"kart": torch.full((1, 4, 4), -9.0), "side": torch.zeros(1, 4, 2)} | changes


def test_numbers_follow_from_the_karts():
    """Where the numbers' heads are in doubt: two karts in front of the ego kart, one left of it and one right."""
    relation = torch.tensor([[[-9.0, 0, 0], [9.0, 9, 9], [9.0, -9, 9]]])
    logits = fuse_global_and_cell_logits(**said(relation=relation))
    assert logits["total"].argmax(-1).tolist() == [3]
    assert logits["count"].argmax(-1).tolist() == [[1, 1, 2, 0]]
    # but a head that is sure is believed
    sure = torch.zeros(1, 5)
    sure[0, 4] = 3 - torch.tensor(FLOOR).log()
    assert fuse_global_and_cell_logits(**said(relation=relation, total=sure))["total"].argmax(-1).tolist() == [4]


def test_cells_say_on_which_side_their_kart_is():
    """Where the summary is in doubt, a kart is on the side that its own cell tells of; so is the ego kart."""
    kart, side = torch.full((1, 4, 4), -9.0), torch.zeros(1, 4, 2)
    kart[0, 1, 0], side[0, 1] = 5, torch.tensor([2.0, -2.0])  # the first kart, in the second cell
    kart[0, 3, 1], side[0, 3] = 5, torch.tensor([-2.0, 2.0])
    kart[0, 2, 2], kart[0, 2, 3] = 5, 5  # the third kart is the ego kart
    logits = fuse_global_and_cell_logits(**said(kart=kart, side=side, relation=torch.zeros(1, 3, 3)))
    assert (logits["relation"][0, :2, 1:] > 0).tolist() == [[True, False], [False, True]]
    assert logits["ego"].argmax(-1).tolist() == [2]


def test_a_kart_is_placed_where_its_cell_is(readout):
    """40 pixels right of the middle: in a view that is a cell, in the grader's crop between two."""
    for columns, at in ((10, 7), (7, 5.5)):
        tokens = torch.zeros(1, 1, 2 + 7 * columns + NUM_FOVEAL_TOKENS, WIDTH)
        readout.recogniser.cell_head.weight.data[3] = 100 / WIDTH
        place = {}
        for column in (int(at), int(at + 0.5)):
            seen = tokens.clone()
            seen[0, 0, 2 + 3 * columns + column] = 1
            with torch.no_grad():
                place[column] = readout.recogniser(seen)["place"][0, 3] * 75
        y, x = torch.stack(list(place.values())).mean(0).tolist()
        assert (y, x) == pytest.approx((0, 40), abs=1)


def test_a_fact_changes_its_own_token(readout):
    """A kart that is there changes its own token and the numbers', a track only the track's; crops have all of them."""
    tokens, crop = (torch.randn(1, 1, 2 + cells + NUM_FOVEAL_TOKENS, WIDTH) for cells in (70, 49))
    tracks = len(KARTS) + COUNTS
    with torch.no_grad():
        before = readout(tokens)
        assert before.shape == readout(crop).shape == (1, len(KARTS) + 1 + len(SIDES) + 1, 48)
        readout.recogniser.summary_head.bias[tracks + 3] += 5
        assert changed(before, readout(tokens)) == [len(KARTS) + 1 + len(SIDES)]
        readout.recogniser.summary_head.bias[tracks + 3] -= 5
        readout.recogniser.summary_head.bias[-3 * (len(KARTS) - 4)] += 5  # the kart of number 4 is there
        numbers = set(range(len(KARTS), len(KARTS) + 1 + len(SIDES)))
        assert set(changed(before, readout(tokens))) == {4} | numbers
    assert readout.kart.in_features == len(KART_FEATURES)


def changed(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    """The numbers of the tokens that differ."""
    return ((before - after).abs() > 1e-5).any(-1)[0].nonzero().flatten().tolist()


def test_it_recognises_what_the_dense_stage_taught(readout):
    """With a dense stage's heads the connector reads as they do: `eval-vision` tells what the text model is told."""
    config = VISION
    tower, heads = VisionEncoder(config).eval(), DenseHeads(config).eval()
    copy_heads_to_connector(readout.recogniser, heads)
    with torch.no_grad():
        logits, tokens = run_heads(tower, heads, torch.randn(2, 3, 100, 150))
        read = readout.recogniser.look(tokens)
    assert read.keys() == {"ego", "total", "track", "count", "relation", "place"}
    for name, expected in fuse_logits(logits).items():
        assert torch.allclose(read[name], expected, atol=1e-5), name


def test_it_looks_at_the_mirror_image_too(readout):
    """So a view and its mirror image are told alike but for left and right; while it learns it looks once."""
    tower, view = VisionEncoder(VISION), torch.randn(2, 3, 100, 150)
    with torch.no_grad():
        for weight in readout.recogniser.parameters():
            weight.normal_(std=0.3)
        assert tower.train()(view).last_hidden_state.shape[1] == 1
        both, mirror = (readout.recogniser(tower.eval()(image).last_hidden_state) for image in (view, view.flip(-1)))
        once = readout.recogniser.look(tower(view).last_hidden_state[:, 0])
    left, right = both["count"][:, 0], both["count"][:, 1]
    assert torch.allclose(mirror["count"][:, 0], right, atol=1e-4) and not torch.allclose(left, right, atol=0.01)
    for name, signs in (("relation", [1, -1, 1]), ("place", [1, -1]), ("ego", [1]), ("total", [1]), ("track", [1])):
        assert torch.allclose(mirror[name], both[name] * torch.tensor(signs), atol=1e-4), name
        assert not torch.allclose(once[name], both[name], atol=1e-3), name


def test_evidence_is_what_captions_tell(readout):
    """By what heads say that are sure: the ego kart, the total, the track, and each kart's sides; nothing else."""
    recogniser, tokens = readout.recogniser, torch.zeros(1, 1, 2 + 49 + NUM_FOVEAL_TOKENS, WIDTH)
    karts, counts, tracks = len(KARTS), COUNTS, len(TRACKS)
    with torch.no_grad():
        for weight in recogniser.parameters():
            weight.zero_()
        recogniser.summary_head.bias[[5, karts + 3, karts + counts + 7]] = 20
        sides = recogniser.summary_head.bias[-3 * karts :].unflatten(0, (karts, 3))
        sides[:, 0] = -20
        sides[2], sides[9] = torch.tensor([20.0, 20, -20]), torch.tensor([20.0, -20, 0])  # left behind; right
        evidence = recogniser.evidence(tokens)[0]
    ego, total, track, attend_cells = evidence.split([karts, counts, tracks, 4 * karts])
    most = evidence.max()
    assert [part.argmax().item() for part in (ego, total, track)] == [5, 3, 7]
    told = attend_cells.unflatten(0, (karts, len(SIDES)))
    expected = torch.zeros(karts, len(SIDES))
    expected[2, [0, 3]], expected[9, 1], expected[9, [2, 3]] = most, most, most / 2
    assert torch.allclose(told, expected, atol=0.01) and most > 10
    assert evidence.numel() == recogniser.num_evidence and (evidence > 0.01).sum() == 3 + 5


def test_facts_are_doubted_in_training_only(readout):
    """What LoRA learns from is less sure from batch to batch; what answers is the same each time."""
    tokens = torch.randn(2, 1, 2 + 70 + NUM_FOVEAL_TOKENS, WIDTH)
    with torch.no_grad():
        assert torch.equal(readout(tokens), readout(tokens))
        readout.train()
        assert not torch.allclose(readout(tokens), readout(tokens), atol=0.01)
    sure = 6 * torch.eye(20).repeat(100, 1)  # 2,000 views of a class each
    said = perturb_logits(sure)
    shares = said.softmax(-1).amax(-1)
    assert shares.min() < 0.5 < 0.9 < sure.softmax(-1).amax(-1).min()
    assert (said.argmax(-1) == sure.argmax(-1)).float().mean() > 0.6  # it is doubted, not forgotten


def test_a_count_of_0_is_told_less_readily_when_asked(readout, monkeypatch):
    """Beside what `fuse_global_and_cell_logits` takes from it, and not where LoRA learns to weigh it; other numbers stay as they were."""
    tokens = torch.randn(2, 1, 2 + 70 + NUM_FOVEAL_TOKENS, WIDTH)
    given = []
    monkeypatch.setattr(readout.number, "forward", lambda numbers: given.append(numbers) or numbers.new_zeros(2, 5, 48))
    monkeypatch.setattr("homework.models.tux_nano.connector.perturb_logits", lambda values: values)
    with torch.no_grad():
        count = readout.recogniser(tokens)["count"]
        readout.train()(tokens), readout.eval()(tokens)
    learned, asked = (numbers[:, 1:].log() for numbers in given)
    assert torch.allclose(learned, count.log_softmax(-1), atol=1e-3)
    shift = asked - learned
    assert torch.allclose(shift[..., 0] - shift[..., 1], torch.tensor(ZERO_COUNT_LOGIT_BIAS_EVAL), atol=1e-3)
    assert torch.allclose(shift[..., 1:], shift[..., 1:2].expand_as(shift[..., 1:]), atol=1e-3)
