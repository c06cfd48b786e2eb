"""Grade bundles: `python3 -m grader ID.zip`. docs/GRADING.md shows how, docs/GRADER_SECURITY.md what is guaranteed.

`unpack` checks (`zip_directory`) and extracts a bundle, `redact` writes the questions without answers, `runner` runs
each model in a sandboxed subprocess (`worker`, `sandbox`), `score` compares answers, `ledger` keeps grades, `report`
formats them, `autograder` packs all for Gradescope. Only workers import a bundle.
"""
