"""Inspect models: an HTML report, a local page to browse views, and error analysis."""
