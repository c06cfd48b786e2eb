"""Test viewer.error_analysis: the summary and the tables."""

import json
import re
from collections import Counter

from homework.labels.questions import classify_question
from tests.viewer.test_answers import answer_view
from viewer.answers import group_by_kart_size, group_by_num_karts, group_by_training_pair
from viewer.error_analysis import analyze, format_table


def test_tables_group_by_difficulty():
    """Groups are the karts in the view, the deciding kart's size, and the pairs of kart and track in train."""
    rows = answer_view({"Is gnu to the left or right of the ego car?": "right"})
    sizes = {(row.question, group_by_kart_size(row)) for row in rows}
    assert ("What kart is the ego car?", "25 or more") in sizes and ("What track is this?", None) in sizes
    assert ("Is gnu to the left or right of the ego car?", " 7 to 9") in sizes  # 7 pixels wide
    assert ("How many karts are behind the ego car?", " 7 to 9") in sizes  # the smallest of the view
    assert {group_by_num_karts(row) for row in rows} == {"3"}
    assert {group_by_training_pair(Counter({("tux", "abyss"): 1}))(row) for row in rows} == {"in train"}
    assert {group_by_training_pair(Counter())(row) for row in rows} == {"not in train"}
    lines = format_table("pixels", rows, group_by_kart_size)
    relation = [line.split() for line in lines if line.startswith("   7 to 9")]
    assert relation[0][3:] == ["-", "100.0", "of", "1", "66.7", "of", "3", "100.0", "of", "4"]


def test_command_prints_tables_and_consistency(call, nano_folder, tiny_data, tmp_path):
    """The command runs on a tiny model and writes every answer."""
    status, out, err = call((analyze,), "analyze", nano_folder, "--data", tiny_data, "--output", tmp_path / "a.json")
    assert status == 0, err
    begin, score, agreement, causes = out.splitlines()[:4]  # what is being done, and the summary
    num_questions = len(json.loads((tmp_path / "a.json").read_text())["samples"])
    assert re.fullmatch(rf"answering {num_questions} questions about 6 views, about \d+ s with TuxNano.*", begin)
    assert re.search(r"[\d.]+ % of \d+ questions right.*most frequent answer [\d.]+ %, chance [\d.]+ %$", score)
    assert re.search(
        r"^worst type \w+ \([\d.]+ %\), best \w+ \([\d.]+ %\); \d+ of 6 views with karts have answers", agreement
    )
    assert re.search(r"^\d+ errors, each with one or more causes: [a-z -]+ [\d.]+ %", causes)
    for words in ("karts in the view", "kart size in pixels", "not in train", "all of a view"):
        assert words in out
    samples = json.loads((tmp_path / "a.json").read_text())["samples"]
    official = [row for row in samples if row["correct_answer"] != "0"]
    wrong = Counter(
        (row["correct_answer"], row["model_answer"])
        for row in official
        if row["model_answer"].strip().lower() != row["correct_answer"].lower()
    )
    first = out.split("most frequent mistakes: type, truth, answer, number\n")[1].splitlines()[0].split()
    assert (int(first[-1]), first[1] in {truth for truth, _ in wrong}) == (wrong.most_common(1)[0][1], True)
    counts = [row["correct_answer"] for row in samples if classify_question(row["question"]) == "count"]
    for name, number in (("0", counts.count("0")), ("others", len(counts) - counts.count("0"))):
        assert re.search(rf"^  {name} +[\d.]+ of {number}$", out.split("counts, 0 included")[1], re.M)
