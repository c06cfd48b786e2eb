"""TuxNano's connector: the vision encoder's predictions, as tokens for the language model.

This is a concept bottleneck: a connector that passed the grid cells on would leave the language model to search for the
cell of the kart that a question names, and there is none where the encoder took that kart for another.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...labels.scene import VIEW_SIZE
from .config import TuxNanoConfig
from .vision import GRID_ROWS, cell_centers, split_tokens

SIDES = ("left", "right", "front", "behind")  # of the ego kart, on which karts are counted
KART_FEATURES = ("present", "left", "front", "ego", "y", "x")  # of a kart's token
PREDICTION_HEAD_MODULES = {"global_head", "grid_head", "foveal_head"}  # layers of `PredictionHeads`
# In training: range of the factor on logits, standard deviation of the noise added to them, share of karts dropped.
LOGIT_SCALE_RANGE, LOGIT_NOISE_STD, KART_DROP_PROB = (0.4, 1.0), 0.5, 0.25
# Offset of the logit of a side's count of 0. Three of four counts are 0; with the offset, counts of 0 and larger ones
# are predicted about equally well on unseen races (82 and 84 %; without it 95 and 74 %).
ZERO_COUNT_LOGIT_BIAS = -5.0
# Extra offset at inference. The encoder has memorised the training views, so LoRA becomes overconfident in zero counts;
# this rebalances them on unseen races (82 and 83 %; without it 90 and 80 %).
ZERO_COUNT_LOGIT_BIAS_EVAL = -2.0
MIN_EVIDENCE_PROB = 1e-3  # probabilities below this carry no evidence
MIN_COUNT_PROB = 1e-3  # lower bound on Poisson-binomial count probabilities


def num_image_tokens(num_karts: int) -> int:
    """Return how many tokens an image becomes: one per kart, the total, one count per side, the track."""
    return num_karts + 1 + len(SIDES) + 1


class PredictionHeads(nn.Module):
    """Linear heads that predict karts, counts and the track from register tokens and cells.

    They are pretrained together with the vision encoder; LoRA leaves them alone.
    """

    def __init__(self, config: TuxNanoConfig):
        super().__init__()
        dim, num_karts, num_counts = config.vision.hidden_size, config.num_karts, config.num_counts
        self.num_register_tokens, self.num_karts = config.vision.num_register_tokens, num_karts
        self.sizes = num_karts, num_counts, config.num_tracks, len(SIDES) * num_counts, 3 * num_karts
        self.global_head = nn.Linear(self.num_register_tokens * dim, sum(self.sizes))
        # which karts' centres lie in a cell, does the ego kart's; is a kart there left of the ego kart, in front of it
        self.grid_head = nn.Linear(dim, num_karts + 1 + 2)
        self.foveal_head = nn.Linear(dim, num_karts + 1 + 2)
        self.num_captions = num_karts + num_counts + config.num_tracks + len(SIDES) * num_karts

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return logits averaged over TTA passes, see `fuse_global_and_cell_logits`, and place [b, karts, 2].

        A place is the expected position of a kart, (y, x) from the image's centre in halves of a view's width.

        Args:
            tokens: of the vision encoder, [b, passes, s, d].
        """
        return average_tta([self.forward_single(one_pass) for one_pass in tokens.unbind(1)])

    def forward_single(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return the same for the tokens [b, s, d] of one pass."""
        registers, grid, foveal = split_tokens(tokens, self.num_register_tokens)
        ego, total, track, count, relation = self.global_head(registers.flatten(1)).float().split(self.sizes, dim=1)
        cells = torch.cat([self.grid_head(grid), self.foveal_head(foveal)], dim=1).float()
        kart, side = cells.tensor_split([self.num_karts + 1], dim=-1)
        count, relation = count.unflatten(1, (len(SIDES), -1)), relation.unflatten(1, (self.num_karts, 3))
        centers = cell_centers(grid.shape[1] // GRID_ROWS, tokens.device) / (VIEW_SIZE[0] / 2)
        place = attend_cells(kart[..., :-1], centers)
        return fuse_global_and_cell_logits(ego, total, track, count, relation, kart, side) | {"place": place}

    def caption_log_odds(self, tokens: Tensor) -> Tensor:
        """Return the log-odds of every caption there can be, [b, num_captions], with 0 for what is improbable.

        That is: of each ego kart, total and track, and of each kart on each side, minus the log-odds of
        `MIN_EVIDENCE_PROB`. A caption of another type needs a place here, or CLIP cannot learn it. For the tokens, see
        `forward`.
        """
        logits = self(tokens)
        present, sides = logits["relation"].tensor_split([1], dim=-1)
        classes = [logits[name].softmax(-1) for name in ("ego", "total", "track")]
        probabilities = torch.cat([*classes, (present.sigmoid() * side_probabilities(sides)).flatten(1)], dim=1)
        log_odds = probabilities.clamp(MIN_EVIDENCE_PROB, 1 - MIN_EVIDENCE_PROB).logit()
        return log_odds - math.log(MIN_EVIDENCE_PROB / (1 - MIN_EVIDENCE_PROB))


class PredictionConnector(nn.Module):
    """Embed predictions: a token per kart, one for the total and each side's count, and one for the track.

    A question names a kart, so the language model finds that kart's token as it finds a word.
    """

    def __init__(self, config: TuxNanoConfig):
        super().__init__()
        dim = config.text.hidden_size
        self.prediction_heads = PredictionHeads(config)
        self.kart_projection = nn.Linear(len(KART_FEATURES), dim, bias=False)
        self.count_projection = nn.Linear(config.num_counts, dim, bias=False)
        self.track_projection = nn.Linear(config.num_tracks, dim, bias=False)
        self.slot_embedding = nn.Embedding(num_image_tokens(config.num_karts), dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Turn the vision encoder's tokens [b, passes, s, d] into image tokens [b, num_image_tokens, text d]."""
        return self.embed_predictions(self.prediction_heads(tokens))

    def embed_predictions(self, logits: dict[str, Tensor]) -> Tensor:
        """Embed the output of `PredictionHeads` as [b, num_image_tokens, d]; in training mode it is perturbed first."""
        place, dtype = logits["place"], self.slot_embedding.weight.dtype
        if self.training:
            logits = {name: perturb_logits(values) for name, values in logits.items() if name != "place"}
        else:
            logits = logits | {"count": offset_zero_logit(logits["count"], ZERO_COUNT_LOGIT_BIAS_EVAL)}
        # from -1 to 1, with 0 for what is unknown
        present, sides = (logits["relation"] / 2).tanh().tensor_split([1], dim=-1)  # [b, karts, 1], [b, karts, 2]
        if self.training:
            present, place = drop_karts(present), drop_karts(place)
        ego = logits["ego"].softmax(-1)[..., None]
        karts = torch.cat([present, sides, ego, place], dim=-1)  # [b, karts, KART_FEATURES]
        counts = torch.cat([logits["total"][:, None], logits["count"]], dim=1).softmax(-1)  # [b, 1 + SIDES, counts]
        tokens = (
            self.kart_projection(karts.to(dtype)),
            self.count_projection(counts.to(dtype)),
            self.track_projection(logits["track"].softmax(-1)[:, None].to(dtype)),
        )
        return self.norm(torch.cat(tokens, dim=1) + self.slot_embedding.weight)


def fuse_global_and_cell_logits(
    ego: Tensor, total: Tensor, track: Tensor, count: Tensor, relation: Tensor, kart: Tensor, side: Tensor
) -> dict[str, Tensor]:
    """Fuse image-level and per-cell logits, and add count distributions derived from per-kart presence.

    On unseen races 2 % more of the relations are right than by the image-level logits alone, and 1 to 2 % more of the
    totals and counts (docs/experiments/log.md).

    Args:
        ego, total, track: image-level logits, [b, karts], [b, counts], [b, tracks].
        count: [b, SIDES, counts], also image-level.
        relation: [b, karts, 3], also image-level: present beside the ego kart, left of it, in front of it.
        kart: [b, cells, karts + 1]: whose centre lies in a cell, and whether the ego kart's does.
        side: [b, cells, 2]: is a kart whose centre lies there left of the ego kart, in front of it.

    Returns:
        logits of ego, total, track, count, relation, with the shapes above.
    """
    kart, is_ego = kart.tensor_split([-1], dim=-1)
    ego = ego.log_softmax(-1) + (F.logsigmoid(kart) + F.logsigmoid(is_ego)).logsumexp(1)
    present, sides = relation.tensor_split([1], dim=-1)
    # a kart's sides are also those of the cells where it most likely is
    sides = sides + attend_cells(kart, side)
    present_on = present.sigmoid() * torch.cat([torch.ones_like(present), side_probabilities(sides)], dim=-1)
    others = poisson_binomial(present_on.transpose(1, 2), total.shape[-1])  # [b, 1 + SIDES, counts]
    others = others.clamp(min=MIN_COUNT_PROB).log()
    # the total includes the ego kart
    total = total.log_softmax(-1) + F.pad(others[:, 0, :-1], (1, 0), value=math.log(MIN_COUNT_PROB))
    count = offset_zero_logit(count.log_softmax(-1) + others[:, 1:], ZERO_COUNT_LOGIT_BIAS)
    relation = torch.cat([present, sides], dim=-1)
    return {"ego": ego, "total": total, "track": track, "count": count, "relation": relation}


def average_tta(passes: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Average the logits of an image and of its mirror image, or return those of a single pass.

    On unseen races 0.7 points more are right than by a single pass, 1.6 of the relations (docs/experiments/log.md).
    """
    if len(passes) == 1:
        return passes[0]
    image, mirror_image = passes[0], unflip_logits(passes[1])
    return {name: (image[name] + mirror_image[name]) / 2 for name in image}


def unflip_logits(logits: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert a mirror image's logits into those of the image: left becomes right."""
    new = logits["count"].new_tensor
    result = logits | {"count": logits["count"][:, [1, 0, 2, 3]], "relation": logits["relation"] * new([1, -1, 1])}
    if "place" in logits:
        result["place"] = logits["place"] * new([1, -1])
    return result


def offset_zero_logit(count: Tensor, bias: float) -> Tensor:
    """Add `bias` to the logit of 0, count [..., counts]."""
    return torch.cat([count[..., :1] + bias, count[..., 1:]], dim=-1)


def side_probabilities(sides: Tensor) -> Tensor:
    """Turn logits of left and front [b, karts, 2] into the probability of each of `SIDES`, [b, karts, SIDES]."""
    return torch.stack([sides, -sides], dim=-1).flatten(2).sigmoid()


def attend_cells(kart_logits: Tensor, cell_values: Tensor) -> Tensor:
    """Average [b, cells, n] or [cells, n] by where karts [b, cells, karts] most likely are: [b, karts, n]."""
    return kart_logits.softmax(1).transpose(1, 2) @ cell_values


def perturb_logits(logits: Tensor) -> Tensor:
    """Scale each image's logits [b, ...] by a random factor and add Gaussian noise.

    The encoder has memorised its training views, so its logits there are overconfident: a language model that saw no
    others could not learn to weigh them.
    """
    scale = torch.empty(len(logits), device=logits.device).uniform_(*LOGIT_SCALE_RANGE)
    return logits * scale.view(-1, *[1] * (logits.ndim - 1)) + LOGIT_NOISE_STD * torch.randn_like(logits)


def drop_karts(features: Tensor) -> Tensor:
    """Replace random karts' features [b, karts, n] by random ones from -1 to 1.

    On unseen views the encoder takes a distant kart for another and yet predicts the side of the kart that a question
    names; on its training views, which it has memorised, this never happens.
    """
    is_dropped = torch.rand_like(features[..., :1]) < KART_DROP_PROB
    return torch.where(is_dropped, 2 * torch.rand_like(features) - 1, features)


def poisson_binomial(probabilities: Tensor, num_counts: int) -> Tensor:
    """Return the probabilities that 0, 1, ... of independent events occur. [..., events] -> [..., num_counts].

    The probability of more than `num_counts - 1` events is left out.
    """
    result = F.pad(torch.ones_like(probabilities[..., :1]), (0, num_counts - 1))
    for probability in probabilities.unbind(-1):
        one_more = F.pad(result[..., :-1], (1, 0))
        result = result + probability[..., None] * (one_more - result)
    return result
