"""How the embedded base is made."""

import homework  # noqa: F401 - first, for Ctrl-C while the rest is imported
