"""How fast it is: `python -m benchmarks.throughput`."""

import homework  # noqa: F401 - first, for Ctrl-C while the rest is imported
