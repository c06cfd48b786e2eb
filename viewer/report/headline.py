"""Write the first screen of a report: verdict, scores beside others, origin, and examples."""

from homework.data import BenchmarkResult
from homework.labels.questions import QUESTION_TYPES

from ..answers import AnsweredQuestion, format_percent, group_by_image, mean_of_types, score, score_guesses
from ..causes import Cause
from .collect import ReportData, read_commit, top_errors

# of ChisomOkwor/homework4-vlm, on the course's 120 and 200 official questions; docs/RESULTS.md has the sources
BEST_PUBLISHED = {"VLM": 0.742, "CLIP": 0.795}
CLIP_CHANCE = 1 / 5  # one of five candidates
SAMPLE_MARKER = ".sample"  # in a data folder that `python -m supertux use-sample` filled
NUM_EXAMPLES = 3  # right ones, and wrong ones

Bar = tuple[str, float, bool]  # label, accuracy from 0 to 1, whether it is this model's


def write_verdict(data: ReportData, causes: list[Cause]) -> str:
    """Write two sentences: how good the models are, and where the VLM fails."""
    vlm = score(data.official)
    others = {"chance": mean_of_types(score_guesses(data.official)["chance"])}
    if data.base_answers:
        others["its base"] = score_base(data).macro_accuracy
    text = f"The VLM answers {_percent(vlm.macro_accuracy)} of the questions about {data.split} right"
    text += f" ({', '.join(f'{name} {_percent(share)}' for name, share in others.items())})"
    if data.clip_samples:
        clip = BenchmarkResult(data.clip_samples).accuracy
        text += f", and CLIP finds {_percent(clip)} of the true captions among five (chance {_percent(CLIP_CHANCE)})"
    num_errors = sum(not answer.is_correct for answer in data.official)
    if not num_errors:
        return f"{text}. The VLM makes no error."
    weakest = min(vlm.accuracy_by_type, key=vlm.accuracy_by_type.get)
    share = len(causes[0].errors) / num_errors
    text += f". The VLM is weakest at questions of type {weakest} ({_percent(vlm.accuracy_by_type[weakest])} right), "
    return text + f"and the most frequent cause of its {num_errors:,} errors is “{causes[0].name}” ({_percent(share)})."


def score_base(data: ReportData) -> BenchmarkResult:
    """Score the base's answers to the questions of the official evaluation."""
    return score(answer for answer in data.base_answers if answer.is_official)


def compare_scores(data: ReportData) -> list[tuple[str, list[Bar]]]:
    """Return (title, bars) of each model: its scores, then published ones, the base's and those of guessing."""
    vlm, guesses = score(data.official), score_guesses(data.official)
    own = {"VLM": vlm.macro_accuracy}
    others = {"VLM": [("its base, without LoRA", score_base(data).macro_accuracy)] if data.base_answers else []}
    others["VLM"] += [(name, mean_of_types(by_type)) for name, by_type in guesses.items()]
    titles = {"VLM": "VLM: questions right, %", "CLIP": "CLIP: true captions found among five, %"}
    if data.clip_samples:
        own["CLIP"], others["CLIP"] = BenchmarkResult(data.clip_samples).accuracy, [("chance", CLIP_CHANCE)]
    panels = []
    for part, share in own.items():
        model = data.models[part]
        bars = [(f"this model, {data.split}", share, True)]
        if model.grader_questions:
            bars.append((f"this model, valid_grader ({model.grader_questions})", model.grader_accuracy, True))
        bars.append(("best published, official", BEST_PUBLISHED[part], False))
        panels.append((titles[part], bars + [(*bar, False) for bar in others[part]]))
    return panels


def describe_scores(data: ReportData) -> str:
    """Say what the bars compare."""
    text = f"VLM on {data.split}: mean over question types. Published results are on the course's official questions"
    is_sample = (data.data_dir / SAMPLE_MARKER).exists()
    return text + (", which are not this sample's valid_grader." if is_sample else ", its valid_grader.")


def describe_origin(data: ReportData) -> list[str]:
    """List where the numbers come from: commit, base, training, and the split's size."""
    model, commit = data.models["VLM"], read_commit()
    facts = [f"commit {commit}"] if commit else []
    facts += [f"base {model.base}" if model.base else "a base without LoRA"]
    if "date" in model.manifest:
        facts.append(f"trained {model.manifest['date']} on {model.manifest.get('config', {}).get('split')}")
    return [*facts, f"{len(group_by_image(data.answers)):,} views of {data.split}"]


def choose_examples(data: ReportData, causes: list[Cause]) -> list[tuple[str, list[AnsweredQuestion]]]:
    """Choose three right and three wrong answers about different views, as (title, answers).

    The wrong ones are of the most frequent causes and, if possible, of different types. The right ones are of the same
    types, about other tracks and similarly many karts.
    """
    wrong, right = [], []
    for cause in causes:
        used = {item for answer in wrong for item in (answer.question_type, answer.image)}
        wrong += top_errors(
            (answer for answer in cause.errors if used.isdisjoint((answer.question_type, answer.image))), 1
        )
    used = {answer.image for answer in wrong}
    wrong = [*wrong, *top_errors((answer for answer in data.official if answer.image not in used), NUM_EXAMPLES)]
    wrong = wrong[:NUM_EXAMPLES]
    num_karts = {answer.question_type: len(answer.scene.karts) for answer in wrong}
    tracks = {answer.scene.track for answer in wrong}
    for question_type in list(dict.fromkeys([*num_karts, *QUESTION_TYPES]))[:NUM_EXAMPLES]:
        number, seen = num_karts.get(question_type, 2), tracks | {answer.scene.track for answer in right}
        found = [row for row in data.official if row.is_correct and row.question_type == question_type]
        differences = [(row.scene.track in seen, abs(len(row.scene.karts) - number)) for row in found]
        if found:
            right.append(found[differences.index(min(differences))])
    return [("Right", right), ("Wrong", wrong)]


def _percent(share: float) -> str:
    return f"{format_percent(share)} %"
