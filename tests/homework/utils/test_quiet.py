"""`--quiet` hides progress bars and messages, but not results and errors; logs get no bars."""

import logging
import sys
import tempfile

import bundle
from homework import generate_captions, generate_qa
from homework.utils import progress
from homework.utils.errors import InputError


def work(fail: bool = False) -> None:
    """Log, show a bar, and print a result."""
    logging.getLogger(__name__).info("a note")
    for _ in progress.progress_bar(range(3), desc="a bar", file=sys.stderr):
        pass
    print("the result")
    if fail:
        raise InputError("some/file", "is broken", "mend it")


def test_quiet_hides_messages_but_not_results_and_errors(call):
    assert call((work,), "work")[:2] == (0, "a note\nthe result\n")
    assert call((work,), "work", "--quiet") == (0, "the result\n", "")
    status, out, err = call((work,), "work", "--quiet", "--fail")
    assert (status, out, err) == (1, "the result\n", "error: some/file: is broken; mend it\n")
    assert call((work,), "work")[1].startswith("a note")  # it ends with its command


def test_progress_bars_are_for_terminals(monkeypatch, capsys):
    """On a terminal, a bar shows description, progress and speed; in a log, and quietly, nothing."""
    list(progress.progress_bar(range(3), desc="reading"))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    list(progress.progress_bar(range(3), desc="reading", unit="view"))
    shown = capsys.readouterr().err
    assert "reading: 100%" in shown and "3/3" in shown and "view/s" in shown
    with progress.suppress_output():
        list(progress.progress_bar(range(3), desc="reading"))
    assert capsys.readouterr().err == ""


def test_generate_prints_messages_only(tiny_data, call):
    for module in (generate_qa, generate_captions):
        arguments = ("generate", "--split", "train", "--data", tiny_data)
        assert "rows" in call((module.check, module.generate), *arguments)[1]
        assert call((module.check, module.generate), *arguments, "--quiet") == (0, "", "")


def test_bundle(monkeypatch, capsys):
    """`bundle.py` follows the same rules."""
    with tempfile.TemporaryDirectory() as folder:
        for flags in (["--quiet"], []):
            monkeypatch.setattr(sys, "argv", ["bundle.py", "homework", "a", "--output", folder, *flags])
            bundle.main()
            out, err = capsys.readouterr()
            assert err == "" and bool(out) == (not flags)
