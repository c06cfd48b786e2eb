"""Grades bundles: `python3 -m grader ID.zip`.

`unpack` checks a bundle and lays it out, `asked` puts the questions beside it, `run` runs its models in a child process
(`child`) that the `sandbox` shuts in, `score` compares the answers with the truth and `report` prints the points. Only
the child imports anything of the bundle. docs/GRADER_SECURITY.md says what is promised.
"""
