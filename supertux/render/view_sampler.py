"""Which game states are drawn: those that bring the views' kart counts to the wanted distribution."""

import numpy as np

from .engines.pystk2.labels import rotation_matrix

# The game's chase camera at racing speed, in the frame of its target, and its field of view.
CAMERA_UP_M, CAMERA_BACK_M = 1.2, 3.2
FOCAL = 1.303  # half the image's height over the tangent of half its vertical field of view of 75 degrees
ASPECT = 1.5
# A kart 1 m wide has the label rule's 5 pixels of 150 up to here; and nearer than that it is cut off.
MAX_DISTANCE_M, MIN_DISTANCE_M = 13.0, 0.3


def estimate_kart_counts(locations: np.ndarray, rotations: list) -> np.ndarray:
    """Estimate without drawing how many karts are visible to each kart's camera: [karts], from 1.

    Args:
        locations: [karts, 3] metres.
        rotations: the karts' quaternions, as pystk2 gives them.
    """
    counts = np.ones(len(locations), int)
    for i, rotation in enumerate(rotations):
        right, up, front = rotation_matrix(rotation).T
        offset = np.delete(locations, i, 0) - (locations[i] + CAMERA_UP_M * up - CAMERA_BACK_M * front)
        distance = offset @ front
        inside = np.abs(offset @ right) * FOCAL < distance * ASPECT
        counts[i] += np.sum(inside & (distance > MIN_DISTANCE_M) & (distance < MAX_DISTANCE_M))
    return counts


class HistogramSampler:
    """Rejection sampling of frames towards a histogram of the number of karts per view."""

    def __init__(self, target: tuple[float, ...], max_rejections: int):
        """Begin with no views.

        Args:
            target: shares of views with 1, 2, ... karts, in any unit.
            max_rejections: candidates in a row to reject before one is accepted as it is.
        """
        self.max_rejections = max_rejections
        self.target = np.asarray(target, float) / sum(target)
        self.histogram = np.zeros(len(target))
        self.rejections = 0

    def accept(self, counts: np.ndarray) -> bool:
        """Decide whether to draw a candidate whose views probably show `counts` [views] karts."""
        better = self._distance(self.histogram + self._bin(counts)) <= self._distance(self.histogram)
        accepted = better or self.rejections >= self.max_rejections
        self.rejections = 0 if accepted else self.rejections + 1
        return accepted

    def add(self, counts: np.ndarray) -> None:
        """Add the views of a drawn frame to the histogram; views without karts have no bin."""
        self.histogram += self._bin(counts)

    def _bin(self, counts: np.ndarray) -> np.ndarray:
        counts = np.asarray(counts)
        return np.bincount(np.clip(counts[counts > 0], 1, len(self.target)) - 1, minlength=len(self.target))

    def _distance(self, histogram: np.ndarray) -> float:
        """Return the L1 distance from the target, inf for no views."""
        return float(np.abs(histogram / max(1, histogram.sum()) - self.target).sum()) if histogram.any() else np.inf
