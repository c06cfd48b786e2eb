"""From answers to points."""

import pytest

from grader.score import PartGrade, compute_extra_points, compute_points, match_answers, score_part


@pytest.mark.parametrize(
    ("part", "accuracy", "expected"),
    [
        *(("vlm", 0.0, 0), ("vlm", 0.35, 25), ("vlm", 0.7, 50), ("vlm", 1.0, 50)),
        *(("clip", 0.0, 0), ("clip", 0.2, 0), ("clip", 0.45, 25), ("clip", 0.7, 50), ("clip", 1.0, 50)),
    ],
)
def test_compute_points(part, accuracy, expected):
    assert compute_points(part, accuracy) == pytest.approx(expected)


def test_compute_extra_points():
    values = {0.0: 0, 0.7999: 0, 0.8: 0, 0.825: 2.5, 0.85: 5, 1.0: 5}
    assert [compute_extra_points(accuracy) for accuracy in values] == pytest.approx(list(values.values()))


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


def test_course_accuracy_is_that_of_the_first_128():
    rows = [{"image_path": f"v/{n}.jpg", "candidates": ["a", "b"], "correct_index": 0} for n in range(200)]
    records = [{"image": f"v/{n}.jpg", "query": ["a", "b"], "answer": "ab"[n >= 64]} for n in range(200)]
    part = PartGrade("clip", score_part("clip", rows, records)[0])
    assert (part.result.accuracy, part.course.accuracy) == (0.32, 0.5)
    assert part.points == pytest.approx(12)
