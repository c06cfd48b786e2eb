"""Tell pictures that are unlike the game's frames, by an out-of-distribution score from TuxNano's vision encoder.

The score is the sum of three standardised parts, each larger where a picture is less familiar: minus the largest logit
of the ego kart (arXiv:1911.11132), minus the log-sum-exp of the track's logits (energy, arXiv:2010.03759), and the log
Mahalanobis distance of the mean features of an early layer (arXiv:1807.03888). It comes from the bundled base, whatever
model answers. `python -m benchmarks.familiarity` fits the statistics and measures the error rates.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from homework.models.images import load_views, normalise
from homework.models.loading import DEFAULT_BASE
from homework.models.tux_nano.model import WEIGHTS_FILE, TuxNano

STATISTICS = Path(__file__).with_name("familiarity.npz")
LAYER = 1  # of the vision encoder's stages
BATCH_SIZE = 32


class Familiarity:
    """Scores pictures by statistics of training frames; a picture is unfamiliar above the statistics' `threshold`."""

    def __init__(self):
        self.model, self.statistics = TuxNano.load(Path(DEFAULT_BASE)), {}

    @classmethod
    def load(cls) -> "Familiarity | None":
        """Load the bundled base and its statistics; None if they were fitted on other weights."""
        scorer = cls()
        with np.load(STATISTICS) as stored:
            scorer.statistics = dict(stored)
        return scorer if scorer.statistics["base"] == base_fingerprint() else None

    @torch.inference_mode()
    def _encode(self, paths: Sequence[str | Path]) -> tuple[np.ndarray, np.ndarray]:
        """Return mean features [n, channels], and the parts that come from logits, [n, 2]."""
        views, features, parts = load_views(paths), [], []
        for start in range(0, len(views), BATCH_SIZE):
            encoder, heads = self.model.vision_encoder, self.model.connector.prediction_heads
            grid, foveal = encoder.feature_maps(normalise(views[start : start + BATCH_SIZE]))
            logits = heads.forward_single(encoder.encode(grid[-1], foveal[-1]))
            features.append(grid[LAYER].mean((2, 3)))
            parts.append(torch.stack([-logits["ego"].amax(1), -logits["track"].logsumexp(1)], dim=1))
        return torch.cat(features).double().numpy(), torch.cat(parts).double().numpy()

    def fit(self, paths: Sequence[str | Path], false_alarm_rate: float) -> None:
        """Fit the statistics to training frames, and the threshold that this share of them exceeds."""
        features, parts = self._encode(paths)
        variances, axes = np.linalg.eigh(np.cov(features.T))
        ridge = 1e-3 * variances.mean()  # some channels hardly vary
        self.statistics = {"mean": features.mean(0), "whitening": axes / np.sqrt(variances + ridge)}
        parts = self._add_distance(features, parts)
        self.statistics |= {"parts_mean": parts.mean(0), "parts_std": parts.std(0), "base": base_fingerprint()}
        self.statistics["threshold"] = np.quantile(self._standardise(parts), 1 - false_alarm_rate)

    def _add_distance(self, features: np.ndarray, parts: np.ndarray) -> np.ndarray:
        white = (features - self.statistics["mean"]) @ self.statistics["whitening"]
        return np.column_stack([parts, np.log((white**2).sum(1))])

    def score(self, paths: Sequence[str | Path]) -> np.ndarray:
        """Return each picture's score, [n]; larger is less familiar."""
        return self._standardise(self._add_distance(*self._encode(paths)))

    def _standardise(self, parts: np.ndarray) -> np.ndarray:
        return ((parts - self.statistics["parts_mean"]) / self.statistics["parts_std"]).sum(1)

    def is_unfamiliar(self, path: str | Path) -> bool:
        """Return whether a picture is unlike the game's frames."""
        return bool(self.score([path])[0] > self.statistics["threshold"])


def base_fingerprint() -> str:
    """Identify the bundled base's weights, which the statistics belong to."""
    return hashlib.sha256((Path(DEFAULT_BASE) / WEIGHTS_FILE).read_bytes()).hexdigest()[:16]
