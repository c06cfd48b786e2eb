"""Test utils.errors: remedies name what is near, or where the data comes from; texts end with a whole word."""

import re
from pathlib import Path

import pytest

from homework import finetune, generate_qa
from homework.utils.errors import InputError, file_not_found, first_line, folder_not_found, split_not_found
from supertux.sample import use_sample
from tests.conftest import assert_one_line_error

BOTH_WAYS = ("`python -m supertux use-sample", "`python -m supertux download", "464 MB")


def test_missing_data_names_both_ways(tmp_path: Path, call):
    """Whatever reads the data; another data folder than the default one is in the commands."""
    commands = (finetune.train, finetune.test, generate_qa.check, generate_qa.generate)
    data = tmp_path / "data"
    for arguments in (
        ("train", "--data", data, "--output", tmp_path / "out"),
        ("test", "vlm", "--data", data),
        ("check", "--info_file", data / "valid/00000_info.json", "--view_index", 0),
        ("generate", "--split", "train", "--data", data),
    ):
        result = call(commands, *arguments)
        assert_one_line_error(result, f"{data}")
        assert all(way in result[2] for way in BOTH_WAYS) and f"use-sample --data {data}`" in result[2]
    data.mkdir()
    (data / "mine").mkdir()
    assert all(way in str(split_not_found(data / "train")) for way in BOTH_WAYS)


def test_a_mistyped_name_in_existing_data_names_what_is_near(tiny_data: Path, call):
    """And neither of the two ways to get data."""
    result = call((generate_qa.check,), "check", "--info_file", tiny_data / "valid/000a9_info.json", "--view_index", 0)
    assert_one_line_error(result, "000a9_info.json: no such file; did you mean 000a")
    assert "supertux" not in result[2]
    assert str(split_not_found(tiny_data / "vaild")).endswith(
        "did you mean valid? If not, choose one of train, train_demo, valid, valid_grader"
    )


def test_of_equally_near_names_the_first_that_begins_alike_is_suggested(tmp_path: Path):
    """Whatever order the folder lists its files in."""
    for number in (50, 40, 30, 20, 10, 0):
        (tmp_path / f"{number:05d}_info.json").touch()
    assert str(file_not_found(tmp_path / "0000_info.json")).endswith(
        "did you mean 00000_info.json or 00010_info.json or 00020_info.json?"
    )
    assert "did you mean 00050_info.json or" in str(file_not_found(tmp_path / "0005_info.json"))
    assert str(file_not_found(tmp_path / "x.json")).endswith("; check the path")
    (tmp_path / "runs/vlm2").mkdir(parents=True)
    (tmp_path / "runs/vlm1").mkdir()
    assert "did you mean vlm1?" in str(folder_not_found(tmp_path / "runs/vlm3", "no such run", "train one"))


def test_a_file_in_the_place_of_a_folder_and_the_reverse(tmp_path: Path, call):
    file = tmp_path / "file"
    file.touch()
    assert str(folder_not_found(file, "no such thing", "")).startswith(f"{file}: is a file, expected a folder; ")
    assert str(file_not_found(tmp_path)) == f"{tmp_path}: is a folder, expected a file; name a file in it"
    assert_one_line_error(call((finetune.ask,), "ask", tmp_path), "is a folder, expected a file")
    assert_one_line_error(call((finetune.test,), "test", file, "--data", tmp_path), "use-sample")
    assert_one_line_error(call((use_sample,), "use_sample", "--data", file), "file: is a file, expected a folder")


def test_library_texts_end_with_a_whole_word():
    text = "a library's text with long-hyphenated words " * 10
    short = first_line(ValueError(text))
    assert len(short) <= 200 and short.endswith(" ...")
    assert re.match(re.escape(short.removesuffix(" ...")) + r"\s", text)
    assert first_line(ValueError("/a" * 200)) == "/a" * 200
    assert first_line(ValueError("one\ntwo")) == "one" and first_line(KeyError()) == "KeyError"


def stops() -> None:
    """Be interrupted."""
    raise KeyboardInterrupt


@pytest.mark.parametrize("is_kept", [False, True])
def test_only_a_command_that_keeps_something_says_so(tmp_path, call, monkeypatch, is_kept):
    if is_kept:
        monkeypatch.setattr("supertux.sample.sample_files", lambda _: stops())
        status, _, err = call((use_sample,), "use_sample", "--data", tmp_path)
        assert err == "interrupted: finished files are kept; run the same command again to resume\n"
    else:
        status, _, err = call((stops,), "stops")
        assert err == "interrupted\n"
    assert status == 130


def test_an_input_error_is_one_line():
    assert str(InputError("a\nb", "is bad", "mend it")) == "a\\nb: is bad; mend it"
