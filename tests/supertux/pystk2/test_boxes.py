"""The label decoder's boxes against those of the karts' own masks at 600x400, on one view of each track."""

import numpy as np
import pytest

from supertux.render.planner import TRACKS
from tests.supertux.installed import skip_unless_installed
from tests.supertux.pystk2.instance_masks import make_plan, measure_boxes

MAX_ERROR_PX = 3  # of 600x400
MAX_MEAN_ERROR_PX = 0.6

# In tutorial the left edge of wilber's box is 24 pixels off. Strict: remove the mark when the decoder is fixed.
KNOWN_ERROR = pytest.mark.xfail(strict=True, reason="a box of this view is 24 pixels too wide")

errors_by_track: dict[str, np.ndarray] = {}  # [karts, 4] pixels


@pytest.mark.slow
@pytest.mark.parametrize("track", [pytest.param(t, marks=KNOWN_ERROR if t == "tutorial" else ()) for t in TRACKS])
def test_all_edges_are_within_3_pixels(track: str):
    skip_unless_installed("sd")
    rows = measure_boxes(make_plan(track, "sd", seed=1))
    errors = np.array([np.abs(np.subtract(row["box"], row["truth"])) for row in rows])
    errors_by_track[track] = errors
    print(f"{track:20} {len(rows)} karts, mean {errors.mean():.2f}, largest {errors.max()}")
    assert errors.max() <= MAX_ERROR_PX, [
        row for row, far in zip(rows, errors > MAX_ERROR_PX, strict=True) if far.any()
    ]


@pytest.mark.slow
def test_the_mean_error_is_about_half_a_pixel():
    if len(errors_by_track) < len(TRACKS):
        pytest.skip("needs the measurements of all tracks in one process; run pytest -n 0 on this file")
    errors = np.concatenate([errors for track, errors in errors_by_track.items() if track != "tutorial"])
    print(f"{len(errors)} karts, {errors.size} edges, mean {errors.mean():.2f}, largest {errors.max()}")
    assert len(errors) > 50 and errors.mean() < MAX_MEAN_ERROR_PX
