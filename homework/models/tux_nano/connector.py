"""The embedded base's connector: what the tower recognises, as tokens for the text model.

A connector that gives the text model the tower's cells leaves it to look for the cell of the kart that a question
names, and there is none where the tower took that kart for another.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...labels.scene import VIEW_SIZE
from .vision import ROWS, cell_centers, split_tokens

SIDES = ("left", "right", "front", "behind")  # that karts are counted on
KART_FEATURES = ("there", "left", "front", "ego", "y", "x")  # what a kart's token tells of it
PREDICTION_HEAD_MODULES = {"summary_head", "cell_head", "fovea_head"}  # layers of a `PredictionHeads`
# in training: what logits are multiplied by, and the deviation of what is added; the share of karts that are missed
LOGIT_SCALE_RANGE, NOISE, KART_DROP_PROB = (0.4, 1.0), 0.5, 0.25
# What the logit of a side's count of 0 gets, since three of four counts are 0: of races that the tower had not seen,
# counts of 0 and others are named right about as often then (82 and 84 %; without it 95 and 74 %).
ZERO = -5.0
# And what it gets beside when it is asked: of views that the tower knows by heart LoRA learns to trust a 0 more than is
# right elsewhere. With it the answers about those races are balanced like that (82 and 83 %; without it 90 and 80 %).
ZERO_COUNT_LOGIT_BIAS_EVAL = -2.0
LEAST = 1e-3  # what is less likely than this is no evidence
FLOOR = 1e-3  # the least that a number of karts is given by the karts one by one


def num_image_tokens(num_karts: int) -> int:
    """How many tokens of a view the text model is given: karts, the total, the sides' numbers, the track."""
    return num_karts + 1 + len(SIDES) + 1


class PredictionHeads(nn.Module):
    """Linear layers that recognise karts, numbers and the track in the tower's summary and cells.

    They come from the stage that teaches the tower with them; LoRA leaves them alone.

    Args:
        summary_tokens: how many of the tower's tokens come first; then come the view's cells, then the fovea's.
        vision_size: width of the tower's tokens.
        num_karts, num_tracks: how many there are in the game.
        num_counts: numbers of karts that are told apart, from 0; the last one stands for larger ones as well.
    """

    def __init__(self, summary_tokens: int, vision_size: int, num_karts: int, num_tracks: int, num_counts: int):
        super().__init__()
        self.summary_tokens, self.num_karts = summary_tokens, num_karts
        self.sizes = num_karts, num_counts, num_tracks, len(SIDES) * num_counts, 3 * num_karts
        self.summary_head = nn.Linear(summary_tokens * vision_size, sum(self.sizes))
        # which karts' centres lie in a cell, does the ego kart's, are those left of it and in front
        self.cell_head = nn.Linear(vision_size, num_karts + 1 + 2)
        self.fovea_head = nn.Linear(vision_size, num_karts + 1 + 2)
        self.num_evidence = num_karts + num_counts + num_tracks + len(SIDES) * num_karts

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """The tower's tokens [b, looks, s, vision_size] -> see `fuse_global_and_cell_logits`; and place [b, karts, 2].

        A place is that of the cells where a kart most likely is, (y, x) from the middle in halves of a view's width.
        """
        return average_tta([self.look(of_one) for of_one in tokens.unbind(1)])

    def look(self, tokens: Tensor) -> dict[str, Tensor]:
        """As `forward`, of the tokens [b, s, vision_size] of one look."""
        summary, view, fovea = split_tokens(tokens, self.summary_tokens)
        read = self.summary_head(summary.flatten(1)).float().split(self.sizes, dim=1)
        ego, total, track, count, relation = read
        cells = torch.cat([self.cell_head(view), self.fovea_head(fovea)], dim=1).float()
        kart, side = cells.tensor_split([self.num_karts + 1], dim=-1)
        count, relation = count.unflatten(1, (len(SIDES), -1)), relation.unflatten(1, (self.num_karts, 3))
        middles = cell_centers(view.shape[1] // ROWS, tokens.device) / (VIEW_SIZE[0] / 2)
        place = attend_cells(kart[..., :-1], middles)
        return fuse_global_and_cell_logits(ego, total, track, count, relation, kart, side) | {"place": place}

    def evidence(self, tokens: Tensor) -> Tensor:
        """What a caption can tell, by how likely it is: tokens [b, looks, s, vision_size] -> [b, num_evidence], from 0.

        Log odds of each ego kart, total, track, and of each kart on each side, from those of `LEAST` on: of what is not
        to be seen it is 0. A caption of another kind needs a place here, or CLIP can't learn it.
        """
        logits = self(tokens)
        there, sides = logits["relation"].tensor_split([1], dim=-1)
        classes = [logits[name].softmax(-1) for name in ("ego", "total", "track")]
        likely = torch.cat([*classes, (there.sigmoid() * side_probabilities(sides)).flatten(1)], dim=1)
        return likely.clamp(LEAST, 1 - LEAST).logit() - math.log(LEAST / (1 - LEAST))


class PredictionConnector(nn.Module):
    """A token for each kart, for the total and each side's number of karts, and for the track.

    A question names a kart, so that the text model finds its token as it finds a word.

    Args:
        recogniser: of what is told.
        text_size: width of the text model.
        num_karts, num_tracks, num_counts: as the recogniser's.
    """

    def __init__(self, recogniser: PredictionHeads, text_size: int, num_karts: int, num_tracks: int, num_counts: int):
        super().__init__()
        self.recogniser = recogniser
        self.kart = nn.Linear(len(KART_FEATURES), text_size, bias=False)
        self.number = nn.Linear(num_counts, text_size, bias=False)
        self.track = nn.Linear(num_tracks, text_size, bias=False)
        self.slot = nn.Embedding(num_image_tokens(num_karts), text_size)
        self.norm = nn.LayerNorm(text_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """The tower's tokens [b, looks, s, vision_size] -> [b, karts + 1 + SIDES + 1, text_size]."""
        return self.tell(self.recogniser(tokens))

    def tell(self, logits: dict[str, Tensor]) -> Tensor:
        """What a `PredictionHeads` gives -> [b, karts + 1 + SIDES + 1, text_size]; in training some of it is doubted."""
        place, kind = logits["place"], self.slot.weight.dtype
        if self.training:
            logits = {name: perturb_logits(values) for name, values in logits.items() if name != "place"}
        else:
            logits = logits | {"count": offset_zero_logit(logits["count"], ZERO_COUNT_LOGIT_BIAS_EVAL)}
        # from -1 to 1, and 0 where nothing is known
        there, sides = (logits["relation"] / 2).tanh().tensor_split([1], dim=-1)  # [b, karts, 1], [b, karts, 2]
        if self.training:
            there, place = drop_karts(there), drop_karts(place)
        karts = torch.cat([there, sides, logits["ego"].softmax(-1)[..., None], place], dim=-1)  # [b, karts, OF_A_KART]
        told = [
            project(facts.to(kind))
            for project, facts in (
                (self.kart, karts),
                (self.number, torch.cat([logits["total"][:, None], logits["count"]], dim=1).softmax(-1)),
                (self.track, logits["track"].softmax(-1)[:, None]),
            )
        ]
        return self.norm(torch.cat(told, dim=1) + self.slot.weight)


def build_connector(config) -> PredictionConnector:
    """The connector of a `TuxNanoConfig`, or of what has its fields."""
    game = {name: getattr(config, name) for name in ("num_karts", "num_tracks", "num_counts")}
    vision = config.vision_config
    recogniser = PredictionHeads(vision.num_summary_tokens, vision.hidden_size, **game)
    return PredictionConnector(recogniser, config.text_config.hidden_size, **game)


def fuse_global_and_cell_logits(
    ego: Tensor, total: Tensor, track: Tensor, count: Tensor, relation: Tensor, kart: Tensor, side: Tensor
) -> dict[str, Tensor]:
    """What the summary says of a view, with what its cells say of each kart, and the karts one by one of their number.

    All are logits. On races that the tower had not seen this has 2 % more of the relations right than the summary
    alone, and 1 to 2 % more of the totals and counts (docs/experiments/log.md).

    Args:
        ego, total, track: [b, karts], [b, counts], [b, tracks], of the summary, as are the next two.
        count: [b, SIDES, counts].
        relation: [b, karts, 3]: there beside the ego kart, left of it, in front of it.
        kart: [b, cells, karts + 1]: whose centre lies in a cell, and whether the ego kart's does.
        side: [b, cells, 2]: is a kart whose centre lies there left of the ego kart, in front of it.

    Returns:
        ego, total, track, count, relation.
    """
    kart, is_ego = kart.tensor_split([-1], dim=-1)
    ego = ego.log_softmax(-1) + (F.logsigmoid(kart) + F.logsigmoid(is_ego)).logsumexp(1)
    there, sides = relation.tensor_split([1], dim=-1)
    # a kart's sides are also those of the cells where it most likely is
    sides = sides + attend_cells(kart, side)
    there_and = there.sigmoid() * torch.cat(
        [torch.ones_like(there), side_probabilities(sides)], dim=-1
    )  # [b, karts, 1 + SIDES]
    others = (
        poisson_binomial(there_and.transpose(1, 2), total.shape[-1]).clamp(min=FLOOR).log()
    )  # [b, 1 + SIDES, counts]
    # the ego kart is one of all
    total = total.log_softmax(-1) + F.pad(others[:, 0, :-1], (1, 0), value=math.log(FLOOR))
    count = offset_zero_logit(count.log_softmax(-1) + others[:, 1:], ZERO)
    return {"ego": ego, "total": total, "track": track, "count": count, "relation": torch.cat([there, sides], dim=-1)}


def average_tta(looks: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What a view shows by the mean logits of one look at it, or of one at it and one at its mirror image.

    A mirrored view is as likely as the view itself, and what goes wrong in one often doesn't in the other: on races
    that the tower had not seen 0.7 points more are right than by one look, of relations 1.6 (docs/experiments/log.md).
    """
    if len(looks) == 1:
        return looks[0]
    seen, mirror = looks[0], unflip_logits(looks[1])
    return {name: (seen[name] + mirror[name]) / 2 for name in seen}


def unflip_logits(logits: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is recognised in a view's mirror image, as it is in the view: left is right."""
    new = logits["count"].new_tensor
    result = logits | {"count": logits["count"][:, [1, 0, 2, 3]], "relation": logits["relation"] * new([1, -1, 1])}
    if "place" in logits:
        result["place"] = logits["place"] * new([1, -1])
    return result


def offset_zero_logit(count: Tensor, by: float) -> Tensor:
    """Logits of numbers [..., counts] with `by` added to that of 0."""
    return torch.cat([count[..., :1] + by, count[..., 1:]], dim=-1)


def side_probabilities(sides: Tensor) -> Tensor:
    """Logits of left and in front [b, karts, 2] -> how likely a kart is on each of `SIDES`, [b, karts, SIDES]."""
    return torch.stack([sides, -sides], dim=-1).flatten(2).sigmoid()


def attend_cells(kart: Tensor, told: Tensor) -> Tensor:
    """Of what is told of each cell, that of the cells where a kart most likely is.

    Args:
        kart: logits, [b, cells, karts].
        told: [b, cells, n], or [cells, n].

    Returns:
        [b, karts, n].
    """
    return kart.softmax(1).transpose(1, 2) @ told


def perturb_logits(logits: Tensor) -> Tensor:
    """Less sharp by chance, each view [b, ...] by another factor, and noisy.

    A tower that knows its views by heart has no doubt, and a text model that never saw any can't weigh it.
    """
    sharpness = torch.empty(len(logits), device=logits.device).uniform_(*LOGIT_SCALE_RANGE)
    return logits * sharpness.view(-1, *[1] * (logits.ndim - 1)) + NOISE * torch.randn_like(logits)


def drop_karts(facts: Tensor) -> Tensor:
    """Facts of karts, [b, karts, facts] from -1 to 1, some of them replaced by chance.

    The tower takes a far kart for another, and yet knows on which side the one that a question names must be. In the
    views that it learned from this never happens.
    """
    lost = torch.rand_like(facts[..., :1]) < KART_DROP_PROB
    return torch.where(lost, 2 * torch.rand_like(facts) - 1, facts)


def poisson_binomial(chances: Tensor, counts: int) -> Tensor:
    """How likely 0, 1, ... of independent events are (Poisson's binomial distribution). [..., events] -> [..., counts].

    More than `counts - 1` of them have no place.
    """
    result = F.pad(torch.ones_like(chances[..., :1]), (0, counts - 1))
    for chance in chances.unbind(-1):
        one_more = F.pad(result[..., :-1], (1, 0))
        result = result + chance[..., None] * (one_more - result)
    return result
