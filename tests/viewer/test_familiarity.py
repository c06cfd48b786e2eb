"""Test viewer explore's score of unfamiliar pictures."""

import itertools

import pytest
from PIL import Image, ImageDraw

from supertux.sample import sample_files
from viewer.explorer import familiarity
from viewer.explorer.familiarity import STATISTICS, Familiarity


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Write every 30th view of sample/valid, which covers most tracks."""
    folder = tmp_path_factory.mktemp("frames")
    views = ((name, content) for name, content in sample_files("valid") if name.endswith(".jpg"))
    for name, content in itertools.islice(views, 0, None, 30):
        (folder / name).write_bytes(content)
    return sorted(folder.iterdir())


def test_frames_are_familiar_and_other_pictures_are_not(frames, tmp_path):
    """Noise, a plain colour and a page of text are unlike the game."""
    scorer = Familiarity.load()
    assert scorer, "the base's weights changed: run `python -m benchmarks.familiarity fit`"
    assert sum(scorer.score(frames) > scorer.statistics["threshold"]) <= 1 < len(frames) / 20
    page = Image.new("RGB", (600, 800), "white")
    ImageDraw.Draw(page).text((20, 20), "\n".join(["the quick brown fox jumps over the lazy dog"] * 40), "black")
    for picture in (Image.effect_noise((300, 200), 90).convert("RGB"), Image.new("RGB", (90, 90), "teal"), page):
        picture.save(tmp_path / "foreign.png")
        assert scorer.is_unfamiliar(tmp_path / "foreign.png")


def test_statistics_hold_for_the_weights_that_they_were_fitted_on(monkeypatch):
    assert STATISTICS.stat().st_size < 100_000
    monkeypatch.setattr(familiarity, "base_fingerprint", lambda: "other")
    assert Familiarity.load() is None


def test_the_threshold_has_the_requested_false_alarm_rate(frames):
    scorer = Familiarity()
    scorer.fit(frames, 0.25)
    num_above = sum(scorer.score(frames) > scorer.statistics["threshold"])
    assert abs(num_above - 0.25 * len(frames)) < 1
