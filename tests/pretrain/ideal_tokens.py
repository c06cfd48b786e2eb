"""The tokens of a vision encoder that predicts its targets with certainty, and scenes for them."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from homework.labels.scene import Kart
from pretrain.box_targets import box_targets
from pretrain.boxes import PARTS, STRIDE
from pretrain.dataset import CENTER_CROP
from pretrain.synthetic_scenes import sample_scenes
from pretrain.targets import KARTS, TRACKS, AnnotatedScene

CERTAIN = 12.0  # logit
VIEW = (0, 150)  # first and number of the columns
COLUMNS = {"view": VIEW, "crop": CENTER_CROP}


def ideal_tokens(scenes: list[AnnotatedScene], left: int = 0, width: int = 150) -> Tensor:
    """Build the tokens [n, cells + 1, d] of one pass for the image's columns from `left` to `left + width`."""
    targets = box_targets(scenes, left, width)
    sign = lambda is_true: CERTAIN * (2 * is_true.float() - 1)[..., None]
    one_hot = lambda classes, number: CERTAIN * F.one_hot(classes.clamp(min=0), number).float()
    predicted = {
        "heat": sign(targets["heat"] == 1),
        "large": sign(targets["large"]),
        "size": targets["size"],
        "offset": targets["offset"],
        "name": one_hot(targets["name"], len(KARTS)),
    }
    cells = torch.cat([predicted[name] for name in PARTS], dim=-1).flatten(1, 2)
    track = F.pad(one_hot(targets["track"], len(TRACKS)), (0, cells.shape[-1] - len(TRACKS)))
    return torch.cat([cells, track[:, None]], dim=1)


def random_scenes(count: int, seed: int = 0) -> list[AnnotatedScene]:
    """Draw scenes whose labels cells can hold, each with a kart too small for the label rule near the centre."""
    scenes = []
    for scene in sample_scenes(np.random.default_rng(seed), count):
        name = next(name for name in KARTS if name not in {kart.name for kart in scene.karts})
        annotated = AnnotatedScene(scene.track, scene.karts, (Kart(99, name, (74, 50, 77, 53)),))
        if all(has_own_cells(annotated, left) for left, _ in COLUMNS.values()):
            scenes.append(annotated)
    return scenes


def has_own_cells(scene: AnnotatedScene, left: int) -> bool:
    """Check that no two centres lie in one cell, and that a single kart is nearest to the image's centre."""
    cells = {tuple(np.round((np.array(kart.center) - (left, 0)) / STRIDE)) for kart in scene.all_karts}
    distances = sorted(float(np.square(np.array(kart.center) - (75, 50)).sum()) for kart in scene.karts)
    return len(cells) == len(scene.all_karts) and len(set(distances[:2])) == len(distances[:2])


def visible_part(scene: AnnotatedScene, left: int, width: int) -> AnnotatedScene:
    """Return the scene with the karts whose centre lies in the image's columns."""
    is_visible = lambda kart: left <= kart.center[0] < left + width
    return AnnotatedScene(scene.track, tuple(filter(is_visible, scene.karts)), tuple(filter(is_visible, scene.small)))
