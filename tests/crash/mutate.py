"""Derive broken inputs from intact ones, reproducibly: broken bytes, and valid JSON with invalid content."""

import contextlib
import copy
import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path

from homework.utils.errors import InputError

TIMEOUT_SECONDS = 120  # after which a reader counts as hanging; all these files are small
VALUES = (
    *(None, True, False, 0, -1, 3, 10**6, 10**9, 10**18, 10**4000, 1.5, -0.0, 1e308, float("inf"), float("nan")),
    *("", "x", "10", "\0", "a\nb", "\ud800", "../../x", "/", "ä" * 300, "x" * 100_000, "\x1b[2J", "%s{}{0}"),
    *([], {}, [[]], [None], {"": {}}, [1, 2, 3, 4, 5, 6], {"x": [1]}),
)


class Hang(BaseException):
    """A reader took too long."""


def nested(depth: int) -> list:
    """Nest an empty list `depth` times."""
    value = []
    for _ in range(depth):
        value = [value]
    return value


def break_bytes(content: bytes, rng: random.Random) -> bytes:
    """Change, remove, double or insert some bytes."""
    kind, at = rng.randrange(9), rng.randrange(len(content) or 1)
    length = rng.choice((1, 2, 16, 300))
    if kind == 0:
        return content[:at]
    if kind == 1:
        return b""
    if kind == 2:
        return rng.randbytes(rng.choice((1, 100, 5000)))
    if kind == 3:
        return content[:at] + rng.randbytes(length) + content[at:]
    if kind == 4:
        return content[:at] + content[at + length :]
    if kind == 5:
        return content[:at] + content[at : at + length] * 2 + content[at + length :]
    if kind == 6:
        return content[:at] + b"\xff\xfe\x80" + content[at:]
    broken = bytearray(content)
    for _ in range(rng.choice((1, 3, 20))):
        # headers hold sizes
        place = rng.randrange(min(len(broken), 600) if kind == 7 else len(broken)) if broken else 0
        broken[place : place + 1] = bytes([broken[place] ^ (1 << rng.randrange(8))])
    return bytes(broken)


def _places(value, depth: int = 0) -> Iterator[tuple]:
    """Yield (container, key, depth) of every entry of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in items:
        yield value, key, depth
        yield from _places(entry, depth + 1)


def break_json(value, rng: random.Random) -> bytes:
    """Change, remove or double one entry, each depth being equally likely."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    depth = rng.choice(sorted({depth for *_, depth in places}))
    container, key, _ = rng.choice([place for place in places if place[2] == depth])
    kind = rng.randrange(8)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, list):
        container.insert(key, copy.deepcopy(container[key]))
    elif kind == 2:
        container[key] = nested(rng.choice((50, 900)))
    elif kind == 3 and isinstance(container[key], int | float):
        container[key] = rng.choice((-container[key], container[key] * 1000, container[key] + 0.5, str(container[key])))
    else:
        container[key] = rng.choice(VALUES)
    return json.dumps(value).encode()


def broken_json_files(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yield broken versions of a JSON file: one in three by bytes, the others by content."""
    rng, value = random.Random(seed), json.loads(content)
    for number in range(count):
        yield break_json(value, rng) if number % 3 else break_bytes(content, rng)


def broken_files(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yield broken versions of any file."""
    rng = random.Random(seed)
    for _ in range(count):
        yield break_bytes(content, rng)


@contextlib.contextmanager
def time_limit(seconds: int = TIMEOUT_SECONDS) -> Iterator[None]:
    """Raise `Hang` if the block takes longer."""

    def hang(*_) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def failures(file: Path, versions: Iterator[bytes], read, named: Path) -> list[str]:
    """Give each broken version of a file to its reader; return the violations.

    The reader may accept it, or raise an InputError of one line that names `named` or a path in it.
    """
    violations, intact = [], file.read_bytes()
    for number, content in enumerate(versions):
        file.write_bytes(content)
        try:
            with time_limit():
                read()
        except InputError as error:
            if str(named) not in str(error) or len(str(error).splitlines()) != 1:
                violations.append(f"{file.name} {number}: message {str(error)[:300]!r}")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            violations.append(
                f"{file.name} {number}: {type(error).__module__}.{type(error).__name__}: {str(error)[:300]}"
            )
        finally:
            file.write_bytes(intact)
    return violations
