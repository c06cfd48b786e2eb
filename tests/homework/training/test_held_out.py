"""Progress is measured on moments of the split that training leaves out."""

import pytest

from homework.labels.duplicates import moments_of_split
from homework.labels.eval_sets import balanced_pairs, multiple_choice
from homework.labels.rows import image_file, info_files
from homework.training.held_out import HELD_OUT_PERIOD, drop_held_out, held_out_frames, progress_rows
from tests.tiny_models import stand_still


def one_row_per_view(data, split: str) -> list[dict]:
    """Build a row about each view of a split."""
    return [{"image_file": image_file(path, view)} for path in info_files(data / split) for view in range(3)]


def test_what_is_trained_on_is_not_asked_about(sample_data):
    """Every 20th moment of the sample is asked about, and the others are trained on."""
    rows = one_row_per_view(sample_data, "train")
    kept = {row["image_file"].rpartition("/")[2][:5] for row in drop_held_out(rows, sample_data, "train")}
    questions = progress_rows(balanced_pairs, 100, sample_data, "train")
    asked = {row["image_file"].rpartition("/")[2][:5] for row in questions}
    moments = {frame[-5:]: moment for frame, moment in moments_of_split(sample_data / "train").items()}
    held_out = {moment for frame, moment in moments.items() if frame not in kept}
    assert len(held_out) == -(-len(set(moments.values())) // HELD_OUT_PERIOD)
    assert not held_out & {moments[frame] for frame in kept}
    assert asked <= moments.keys() - kept and len(asked) > 15


def test_a_small_split_is_asked_fewer_questions(sample_data):
    """The sample holds out 24 frames: too few views for 200 questions, each about another view."""
    num_views = 8 * len(held_out_frames(sample_data, "train"))
    assert 80 < len(progress_rows(multiple_choice, 200, sample_data, "train")) <= num_views / 2 < 100


def test_a_split_of_a_few_moments_is_trained_on_whole(tiny_data, caplog):
    """Nothing is asked of it, which is said."""
    caplog.set_level("INFO", "homework")
    rows = one_row_per_view(tiny_data, "train")
    assert drop_held_out(rows, tiny_data, "train") == rows
    assert progress_rows(balanced_pairs, 5, tiny_data, "train") == []
    assert "no evaluation while training: train has fewer than 20 moments" in caplog.text


@pytest.mark.parametrize("period", [2, 3])
def test_copies_of_a_frame_are_held_out_together(tiny_data, monkeypatch, period):
    """The first of three moments has four frames; `train_demo` asks about images of `train`, which are left out too."""
    monkeypatch.setattr("homework.training.held_out.HELD_OUT_PERIOD", period)
    stand_still(tiny_data / "train", 4)
    frames = held_out_frames(tiny_data, "train")
    assert {"train/00000", "train/000b1", "train/000b2", "train/000b3"} <= frames
    assert len(frames) == 4 + (period == 2) and len(moments_of_split(tiny_data / "train")) == 6
    assert held_out_frames(tiny_data, "train_demo") == frames
    assert len(drop_held_out([{"image_file": "train/mine.jpg"}], tiny_data, "train")) == 1
