"""Prompts and scores of the task `tux_vlm`, with the rules of the course's benchmark."""


def doc_to_visual(doc):
    """Return the view."""
    return [doc["image"].convert("RGB")]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    """Return the question between the model's own `pre_prompt` and `post_prompt`."""
    settings = lmms_eval_specific_kwargs or {}
    return f"{settings.get('pre_prompt', '')}{doc['question']}{settings.get('post_prompt', '')}"


def process_results(doc, results):
    """Score an answer, ignoring case and outer white space: it begins with the expected one, or equals it."""
    answer, truth = results[0].strip().lower(), doc["answer"].strip().lower()
    prefix_match = float(answer.startswith(truth))
    exact_match = float(answer == truth)
    return {"prefix_match": prefix_match, "exact": exact_match, f"prefix_match_{doc['question_type']}": prefix_match}
