"""Which moments of a race are drawn: those that bring the number of visible karts to the wanted mix."""

import numpy as np

from .engines.pystk2.labels import rotation_matrix

# Moments that are let go before one is taken as it is: driving to the next one costs time, placing costs none.
PATIENCE, PATIENCE_PLACED = 15, 300

# The game's chase camera at racing speed, in the frame of the kart it follows (metres), and its field of view.
CAMERA_UP, CAMERA_BACK = 1.2, 3.2
FOCAL = 1.303  # half the image's height over the tangent of half its vertical field of view of 75 degrees
ASPECT = 1.5
# A kart 1 m wide is the label rule's 5 pixels of 150 as far as this; and nearer than that it is cut off.
FARTHEST, NEAREST = 13.0, 0.3


def visible_karts(locations: np.ndarray, rope_cos_sin: list) -> np.ndarray:
    """A guess, before drawing, of how many karts each kart's camera sees: [k], from 1.

    Args:
        locations: [k, 3] metres.
        rotations: k of the engine's quaternions.
    """
    counts = np.ones(len(locations), int)
    for i, rotation in enumerate(rope_cos_sin):
        right, up, front = rotation_matrix(rotation).T
        offset = np.delete(locations, i, 0) - (locations[i] + CAMERA_UP * up - CAMERA_BACK * front)
        distance = offset @ front
        inside = np.abs(offset @ right) * FOCAL < distance * ASPECT
        counts[i] += np.sum(inside & (distance > NEAREST) & (distance < FARTHEST))
    return counts


class Mix:
    """Views by number of visible karts: those wanted and those drawn so far."""

    def __init__(self, wanted: tuple[float, ...], patience: int = PATIENCE):
        self.patience = patience
        self.wanted = np.asarray(wanted, float) / sum(wanted)
        self.drawn = np.zeros(len(wanted))
        self.waited = 0

    def takes(self, counts: np.ndarray) -> bool:
        """Whether a moment with these numbers of visible karts [views] should be drawn."""
        self.waited += 1
        better = self._distance(self.drawn + self._histogram(counts)) <= self._distance(self.drawn)
        if better or self.waited > self.patience:
            self.waited = 0
            return True
        return False

    def add(self, counts: np.ndarray) -> None:
        """Count the views [views] of a moment that was drawn."""
        self.drawn += self._histogram(counts)

    def _histogram(self, counts: np.ndarray) -> np.ndarray:
        counts = np.asarray(counts)
        return np.bincount(np.clip(counts[counts > 0], 1, len(self.wanted)) - 1, minlength=len(self.wanted))

    def _distance(self, drawn: np.ndarray) -> float:
        return float(np.abs(drawn / max(1, drawn.sum()) - self.wanted).sum()) if drawn.any() else np.inf
