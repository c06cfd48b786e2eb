"""Define the command `lmms-eval`: a task by which lmms-eval measures any of its models on the questions."""

import logging
import shutil
from pathlib import Path

from homework.labels.rows import DATA_DIR, VQADataset, drop_rows_without_image

from .common import TEMPLATES, check_replaceable, new_folder, render, require

logger = logging.getLogger(__name__)

TASK, QUESTIONS_FILE = "tux_vlm", "questions.parquet"


def lmms_eval(*, output: Path, split: str = "valid_grader", data: Path = DATA_DIR, all_questions: bool = False) -> None:
    """Write a task folder for lmms-eval: its YAML, scoring functions, questions and images.

    Example: python -m export lmms-eval --output runs/lmms_eval --split valid --all-questions

    Args:
        output: folder of the task; an earlier export in it is replaced
        split: folder of the data to evaluate on
        data: the data folder
        all_questions: generate every question from the split's frames instead of reading its annotation files

    Raises:
        InputError: the split is missing or broken
    """
    require("datasets")
    check_replaceable(output)
    import pyarrow
    from datasets import Features, Image, Value
    from pyarrow import parquet

    from homework.base_vlm import MAX_NEW_TOKENS
    from homework.finetune import generate_questions
    from homework.labels.questions import classify_question

    rows = generate_questions(split, data) if all_questions else VQADataset(split, data).rows
    text = Value("string")
    columns = Features({"image": Image(), "question": text, "answer": text, "question_type": text})
    documents = [
        {
            "image": {"bytes": Path(row["image_path"]).read_bytes(), "path": row["image_file"]},
            "question": row["question"],
            "answer": row["answer"],
            "question_type": classify_question(row["question"]),
        }
        for row in drop_rows_without_image(rows)
    ]
    types = sorted({document["question_type"] for document in documents})
    with new_folder(output, kind="lmms-eval", split=split) as folder:
        table = pyarrow.Table.from_pylist(documents, columns.arrow_schema)
        parquet.write_table(table, folder / QUESTIONS_FILE, compression="zstd")
        shutil.copy(TEMPLATES / "lmms_eval/utils.py", folder)
        values = {"file": str(output.resolve() / QUESTIONS_FILE), "number": len(documents), "split": split}
        values |= {"metrics": ["prefix_match", "exact", *(f"prefix_match_{name}" for name in types)]}
        values |= {"max_new_tokens": MAX_NEW_TOKENS}
        (folder / f"{TASK}.yaml").write_text(render("lmms_eval/tux_vlm.yaml.jinja", **values))
    logger.info(f"saved {output}: python -m lmms_eval eval --tasks {TASK} --include_path {output} --model NAME")
