"""Scenes that nobody drew, as the text model reads them: karts are many and stand anywhere."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from homework.labels import questions
from homework.labels.scene import VIEW_SIZE, Kart, Scene

from .targets import KART_ID, KARTS, MAX_COUNT, TRACKS, image_targets

MAX_KARTS = 8  # per scene
BOX_SIDE_RANGE_PX = 6, 40
IDEAL_LOGIT = 8.0  # of a prediction that is certain
LISTING_WEIGHT = 3.0  # loss weight of a list of all karts; that of a question is about 1

QAPair = tuple[str, str, float]  # question, answer, loss weight


def sample_scenes(rng: np.random.Generator, count: int) -> list[Scene]:
    """Sample scenes of 1 to `MAX_KARTS` distinct karts, anywhere in the view."""
    scenes = []
    for _ in range(count):
        karts = []
        for number, name in enumerate(rng.permutation(KARTS)[: rng.integers(1, MAX_KARTS + 1)]):
            width, height = rng.integers(*BOX_SIDE_RANGE_PX, size=2)
            x, y = rng.integers((0, 0), (VIEW_SIZE[0] - width, VIEW_SIZE[1] - height))
            karts.append(Kart(number, str(name), (int(x), int(y), int(x + width), int(y + height))))
        scenes.append(Scene(str(rng.choice(TRACKS)), tuple(karts)))
    return scenes


def list_all_karts_qa(scene: Scene, rng: np.random.Generator) -> list[QAPair]:
    """Ask for the sides of all other karts, in random order: [(question, answer, weight)], or [] without other karts.

    Each side follows its kart's name, so that the text model learns to attend from a name to the kart's token.
    """
    if not scene.others:
        return []
    others = [scene.others[i] for i in rng.permutation(len(scene.others))]
    sides = questions.front_or_back, questions.left_or_right
    words = [" ".join([kart.name, *(side(scene, kart) for side in sides)]) for kart in others]
    return [("Tell the place of the karts.", " ".join(words), LISTING_WEIGHT)]


def ideal_predictions(scenes: list[Scene], rng: np.random.Generator) -> dict[str, Tensor]:
    """Build the output of certain and correct `PredictionHeads`; that for absent karts is random."""
    targets = {name: torch.from_numpy(values) for name, values in image_targets(scenes).items()}
    num_classes = {"ego": len(KARTS), "total": MAX_COUNT + 1, "track": len(TRACKS), "count": MAX_COUNT + 1}
    logits = {name: IDEAL_LOGIT * F.one_hot(targets[name], n).float() for name, n in num_classes.items()}
    relation = torch.from_numpy(rng.uniform(-IDEAL_LOGIT, IDEAL_LOGIT, targets["relation"].shape)).float()
    known = IDEAL_LOGIT * (2 * targets["relation"] - 1).float()
    logits["relation"] = torch.where(targets["relation"] >= 0, known, relation)
    place = torch.from_numpy(rng.uniform(-1, 1, (len(scenes), len(KARTS), 2))).float()
    width, height = VIEW_SIZE
    for row, scene in enumerate(scenes):
        for kart in scene.karts:
            x, y = kart.center
            place[row, KART_ID[kart.name]] = torch.tensor([y - height / 2, x - width / 2]) / (width / 2)
    return logits | {"place": place}
