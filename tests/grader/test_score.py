"""From answers to points."""

import pytest

from grader.score import match_answers, score_part
from homework.data import compute_points


@pytest.mark.parametrize(
    ("part", "accuracy", "expected"),
    [
        *(("vlm", 0.0, 0), ("vlm", 0.35, 25), ("vlm", 0.7, 50), ("vlm", 1.0, 50)),
        *(("clip", 0.0, 0), ("clip", 0.2, 0), ("clip", 0.45, 25), ("clip", 0.7, 50), ("clip", 0.8, 50)),
        *(("clip", 0.83, 53), ("clip", 0.85, 55), ("clip", 1.0, 55), ("vlm", 0.5, 36), ("clip", 0.255, 6)),
    ],
)
def test_points_are_those_of_the_course(part, accuracy, expected):
    assert compute_points(part, accuracy) == expected


def test_answers_are_matched_by_image_and_question():
    rows = [
        {"image_path": "data/valid/a.jpg", "question": "What track is this?", "answer": "abyss"},
        {"image_path": "data/valid/b.jpg", "question": "What track is this?", "answer": ""},
    ]
    records = [{"image": "valid/a.jpg", "query": "What track is this?", "answer": "Abyss!"}]
    assert match_answers(rows, "question", records) == ["Abyss!", None]
    result, unanswered = score_part("vlm", rows, records)
    assert (result.accuracy, result.exact_accuracy, unanswered) == (0.5, 0.0, 1)


def test_candidates_may_come_in_any_order():
    rows = [{"image_path": "data/valid/a.jpg", "candidates": ["x", "y"], "correct_index": 1}]
    records = [{"image": "valid/a.jpg", "query": ["y", "x"], "answer": "y"}]
    assert score_part("clip", rows, records)[0].accuracy == 1
