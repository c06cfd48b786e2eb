"""Grades a bundle: `python3 -m grader ID.zip`.

`unpack` lays the bundle out, `run` runs its models in a child process (`child`), `score` compares the
answers with the truth and `report` prints the points. Only the child imports anything of the bundle.
"""
