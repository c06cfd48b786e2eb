"""Skip slow tests where an engine is not installed."""

import pytest

from homework.utils.errors import InputError
from supertux.render.engines import check_installed


def skip_unless_installed(preset: str) -> None:
    """Skip the test, with the remedies, unless the preset can be drawn here."""
    try:
        check_installed(preset)
    except InputError as error:
        pytest.skip(str(error))
