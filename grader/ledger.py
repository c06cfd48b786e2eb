"""Keep grades in a file of JSON lines as soon as they are made, so that a killed run resumes where it stopped."""

import contextlib
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from homework.utils.errors import InputError, make_printable

from .unpack import MAX_ZIP_BYTES, open_bundle


def digest_bundle(bundle: Path) -> str | None:
    """Return the SHA-256 of a zip; None for a folder, and for what is refused at once."""
    with contextlib.suppress(InputError), open_bundle(bundle) as file:
        if os.fstat(file.fileno()).st_size <= MAX_ZIP_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return None


def printable_path(path: str | Path) -> str:
    """Return a path for reports; names on disk are UTF-8 whatever the locale, and bytes that are not are escaped."""
    return make_printable(os.fsencode(path).decode("utf-8", "backslashreplace"))


class Ledger:
    """A file with one line per grade: the bundle's digest, the conditions it was graded under, and its report.

    Attributes:
        graded: digest -> place in the file of its last grade under the same conditions.

    Raises:
        InputError: the file holds something else, or another grader is using it.
    """

    def __init__(self, path: Path | None, conditions: dict):
        """Open or create the file; without a path, grades are kept until the process ends."""
        self.graded: dict[str, int] = {}
        self._path, self._conditions = path, conditions
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b") if path else tempfile.TemporaryFile()  # noqa: SIM115
        self._thread_lock = threading.Lock()
        self._lock_file()
        self._file.seek(0)
        place = 0
        for line in self._file:
            if not line.startswith(b'{"digest": '):
                raise InputError(path, "not a file of grades", "choose another name with --grades, or delete it")
            with contextlib.suppress(ValueError):  # the last line before a kill
                content = json.loads(line)
                if content["digest"] and content["conditions"] == conditions:
                    self.graded[content["digest"]] = place
            place += len(line)
            if not line.endswith(b"\n"):
                self._file.write(b"\n")

    def _lock_file(self) -> None:
        with contextlib.suppress(ImportError):
            import fcntl  # not on Windows

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(self._path, "another grader is using it", "wait for it, or choose --grades") from None

    def append(self, digest: str | None, report: dict) -> int:
        """Write a grade to the disk and return its place; one without a digest is not found again."""
        content = {"digest": digest, "conditions": self._conditions, "report": report}
        with self._thread_lock:
            place = self._file.seek(0, os.SEEK_END)
            self._file.write(json.dumps(content).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        return place

    def read(self, place: int) -> dict:
        """Return the report of a grade."""
        with self._thread_lock:
            self._file.seek(place)
            return json.loads(self._file.readline())["report"]


class Reports:
    """The reports of one run, in the order of its bundles. They are read one at a time: answers take megabytes.

    Attributes:
        places: bundle -> place of its report in the ledger, which may be that of an equal bundle with another name.
    """

    def __init__(self, ledger: Ledger, bundles: Sequence[Path]):
        self._ledger, self._bundles = ledger, bundles
        self.places: dict[Path, int] = {}

    def __getitem__(self, bundle: Path) -> dict:
        return {**self._ledger.read(self.places[bundle]), "bundle": printable_path(bundle)}

    def __iter__(self) -> Iterator[dict]:
        return (self[bundle] for bundle in self._bundles if bundle in self.places)
