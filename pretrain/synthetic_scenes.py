"""Scenes that nobody saw, as the connector would tell of them: they teach the text model to read.

In most views the numbers of karts give away on which side another one is, so that a text model that learns from views
alone does not look up the kart that a question names: it answered the same whatever that kart's token said. Here karts
are many and stand anywhere.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from homework.labels.questions import front_or_back, left_or_right
from homework.labels.scene import VIEW_SIZE, Kart, Scene

from .targets import KART_ID, KARTS, MAX_COUNT, TRACKS, image_targets

MOST = 8  # karts of a scene
SIDES_OF_BOX = 6, 40  # pixels
SURE = 8.0  # the logit of what is known
LISTED = 3.0  # weight of a list beside that of a question


def imagine(rng: np.random.Generator, size: int) -> list[Scene]:
    """`size` scenes of 1 to MOST karts, each another, anywhere in the view."""
    scenes = []
    for _ in range(size):
        karts = []
        for number, name in enumerate(rng.permutation(KARTS)[: rng.integers(1, MOST + 1)]):
            width, height = rng.integers(*SIDES_OF_BOX, size=2)
            x, y = rng.integers((0, 0), (VIEW_SIZE[0] - width, VIEW_SIZE[1] - height))
            karts.append(Kart(number, str(name), (int(x), int(y), int(x + width), int(y + height))))
        scenes.append(Scene(str(rng.choice(TRACKS)), tuple(karts)))
    return scenes


def listing(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str, float]]:
    """A question about the sides of all karts but the ego kart, in any order: (question, answer, weight), or nothing.

    Each side follows on its kart's name, so that a name learns to look for its token.
    """
    if not scene.others:
        return []
    others = [scene.others[i] for i in rng.permutation(len(scene.others))]
    words = [f"{kart.name} {front_or_back(scene, kart)} {left_or_right(scene, kart)}" for kart in others]
    return [("Tell the place of the karts.", " ".join(words), LISTED)]


def recognised_of(scenes: list[Scene], rng: np.random.Generator) -> dict[str, Tensor]:
    """What a tower that is sure of a scene gives: see `PredictionHeads.forward`. Of karts that aren't there, anything."""
    targets = {name: torch.from_numpy(values) for name, values in image_targets(scenes).items()}
    sizes = {"ego": len(KARTS), "total": MAX_COUNT + 1, "track": len(TRACKS), "count": MAX_COUNT + 1}
    logits = {name: SURE * F.one_hot(targets[name], size).float() for name, size in sizes.items()}
    relation = torch.from_numpy(rng.uniform(-SURE, SURE, targets["relation"].shape)).float()
    known = SURE * (2 * targets["relation"] - 1).float()
    logits["relation"] = torch.where(targets["relation"] >= 0, known, relation)
    place = torch.from_numpy(rng.uniform(-1, 1, (len(scenes), len(KARTS), 2))).float()
    width, height = VIEW_SIZE
    for row, scene in enumerate(scenes):
        for kart in scene.karts:
            x, y = kart.center
            place[row, KART_ID[kart.name]] = torch.tensor([y - height / 2, x - width / 2]) / (width / 2)
    return logits | {"place": place}
