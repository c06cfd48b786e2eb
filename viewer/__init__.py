"""Looking at the models: a report as one page, and a local page to browse views and ask about them."""

import homework  # noqa: F401 - first, for Ctrl-C while the rest is imported
