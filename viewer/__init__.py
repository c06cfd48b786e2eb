"""Inspect models: an HTML report, a local page to browse views, and error analysis."""


def default_checkpoint(part: str) -> str:
    """Return the checkpoint folder of `vlm` or `clip` that is inspected unless another is given."""
    return f"homework/weights/{part}"
