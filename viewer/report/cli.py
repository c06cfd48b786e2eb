"""The command `report`: a page that shows what a checkpoint can do and where it fails."""

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
    clip: str = "homework/weights/clip",
    output: str = "report",
) -> None:
    """Ask a VLM and a CLIP everything about a split, and write what they can do into one HTML page.

    Example: python -m viewer report homework/weights/vlm --split valid

    Args:
        checkpoint: of the VLM: a PEFT folder or a base.
        split: folder of the data to ask about.
        data: the data folder; its `train` says which pairs of kart and track could be learned.
        clip: checkpoint of the CLIP.
        output: folder that gets the page, as index.html.

    Raises:
        InputError: no such checkpoint or split, or a broken file in them.
    """
    from .collect import measure  # here, as torch takes seconds and `explore` opens without it
    from .html import page

    measured = measure(checkpoint, clip, split, Path(data))
    file = Path(output) / "index.html"
    with atomic_write(file) as temporary:
        temporary.write_text(page(measured), encoding="utf-8")
    logger.info(f"saved {file} ({file.stat().st_size / 1e6:.1f} MB): open it in a browser")
