"""Fixtures of the grader's tests."""

import pytest

from tests.fake_bundle import write_data, write_package, write_tokenizer, write_zip


@pytest.fixture(scope="package")
def place(tmp_path_factory):
    """A folder with data, a tokenizer, and a bundle as a package and as a zip. Tests do not change it."""
    root = tmp_path_factory.mktemp("grader")
    write_data(root)
    write_tokenizer(root / "tokenizer")
    write_zip(root / "good.zip", write_package(root / "good"))
    return root
