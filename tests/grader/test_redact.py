"""The data that a bundle may read."""

import json
import random

from grader.redact import read_truth, write_redacted_data


def test_redacted_data_has_questions_but_no_answers(place, tmp_path):
    """Rows and candidates are shuffled; the folder holds every image of the evaluation, nothing else."""
    truth = read_truth(place / "data")
    write_redacted_data(truth, tmp_path)
    pairs, choices = (
        json.loads((tmp_path / "valid_grader" / name).read_text())
        for name in ("balanced_qa_pairs.json", "all_mc_qas.json")
    )
    assert {pair["answer"] for pair in pairs} == {""} and {row["correct_index"] for row in choices} == {0}
    assert {pair["question"] for pair in pairs} == {row["question"] for row in truth["vlm"]}
    assert [pair["image_file"] for pair in pairs] != [row["image_file"] for row in truth["vlm"]]
    candidates = {row["image_file"]: row["candidates"] for row in truth["clip"]}
    assert all(sorted(row["candidates"]) == sorted(candidates[row["image_file"]]) for row in choices)
    assert any(row["candidates"] != candidates[row["image_file"]] for row in choices)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == sorted([*candidates, "valid_grader/all_mc_qas.json", "valid_grader/balanced_qa_pairs.json"])


def test_the_shuffle_is_repeatable_by_those_who_have_the_answers(place, tmp_path):
    """It depends on the answers, and no fixed seed undoes it."""
    truth = read_truth(place / "data")

    def shuffle(name, truth):
        write_redacted_data(truth, tmp_path / name)
        return json.loads((tmp_path / name / "valid_grader" / "all_mc_qas.json").read_text())

    choices = shuffle("first", truth)
    assert shuffle("again", truth) == choices
    other = truth | {"clip": [{**row, "correct_index": 2} for row in truth["clip"]]}
    assert shuffle("other", other) != choices
    for seed in (0, 1, None, ""):
        random.seed(seed)
        candidates = [random.sample(row["candidates"], 5) for row in truth["clip"]]
        assert candidates != [row["candidates"] for row in choices]
