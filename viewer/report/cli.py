"""Define the command `report`."""

import logging
from pathlib import Path

from homework.labels.rows import DATA_DIR
from homework.utils.io import atomic_write

logger = logging.getLogger(__name__)


def report(
    checkpoint: str,
    /,
    split: str = "valid",
    data: str = str(DATA_DIR),
    clip: str = "clip",
    output: str = "report",
) -> None:
    """Evaluate a VLM and a CLIP on all of a split and write the results to one HTML page.

    Example: python -m viewer report runs/vlm --split valid

    Args:
        checkpoint: VLM checkpoint: a PEFT folder, a base, or `vlm`, the shipped one; yours is `runs/vlm`.
        split: folder of the data to evaluate on.
        data: data folder; its `train` tells which pairs of kart and track occur in training.
        clip: CLIP checkpoint, by default the shipped one; yours is `runs/clip`.
        output: folder for the page, index.html.

    Raises:
        InputError: a checkpoint or the split is missing or broken.
    """
    from .collect import collect_report_data  # imports torch, which takes seconds
    from .html import render_page

    report_data = collect_report_data(checkpoint, clip, split, Path(data))
    file = Path(output) / "index.html"
    with atomic_write(file) as temporary:
        temporary.write_text(render_page(report_data), encoding="utf-8")
    logger.info(f"saved {file} ({file.stat().st_size / 1e6:.1f} MB); open it in a browser")
