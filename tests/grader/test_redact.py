"""The data that a bundle may read."""

import json

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
