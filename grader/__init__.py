"""Grade bundles: `python3 -m grader ID.zip`. docs/GRADER_SECURITY.md lists what is guaranteed.

`unpack` checks and extracts a bundle, `redact` writes the questions without answers, `runner` runs each model in a
sandboxed subprocess (`worker`, `sandbox`), `score` compares answers, `report` formats. Only workers import a bundle.
"""
