"""Redirect the engine's clock and its unseeded random generator, so that a seed fixes the labels.

pystk2 seeds the C library's generator with the race's seed, but the computer's drivers draw from another one, seeded by
`std::random_device`, and the drivers' figures are animated by the wall clock. With neither redirected, simulated races
drift apart after a few frames (docs/RENDERING.md has the numbers). There is no setting for either, so the engine's
references to these functions, in its global offset table, are pointed to Python's.
"""

import ctypes
import mmap
import os

import numpy as np
import pystk2
from elftools.elf.elffile import ELFFile

from homework.utils.errors import InputError

READ_NS = 1_000  # nanoseconds that pass with each reading of the clock, so that no wait is endless
_RANDOM_DEVICE = "_ZNSt13random_device9_M_getvalEv"  # unsigned std::random_device::_M_getval()
_STEADY_CLOCK = "_ZNSt6chrono3_V212steady_clock3nowEv"  # nanoseconds
_SYSTEM_CLOCK = "_ZNSt6chrono3_V212system_clock3nowEv"  # nanoseconds
_GETTIMEOFDAY = "gettimeofday"
# rows of ELF64's tables; a relocation's r_info holds its type below its symbol
_SYMBOL = np.dtype([("name", "<u4"), ("rest", "V20")])
_RELOCATION = np.dtype([("offset", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])

_callbacks = []  # what the engine calls: Python must not free it


class Clock:
    """The time that the engine reads, in nanoseconds."""

    def __init__(self):
        self.now = 1_000_000_000

    def read(self) -> int:
        """Return the time, a little later with each call."""
        self.now += READ_NS
        return self.now

    def gettimeofday(self, address: int, _zone: int | None) -> int:
        """Write the time to `address`, as the C library's function of this name does."""
        seconds, nanoseconds = divmod(self.read(), 1_000_000_000)
        (ctypes.c_int64 * 2).from_address(address)[:] = seconds, nanoseconds // 1000
        return 0


def control_engine(seed: int) -> Clock:
    """Seed the engine's random device, and return the clock that it reads; call this before `pystk2.init`."""
    clock, pointer, function = Clock(), ctypes.c_void_p, ctypes.CFUNCTYPE
    functions = {
        _RANDOM_DEVICE: function(ctypes.c_uint32, pointer)(lambda device: seed & 0xFFFFFFFF),
        _STEADY_CLOCK: function(ctypes.c_int64)(clock.read),
        _SYSTEM_CLOCK: function(ctypes.c_int64)(clock.read),
        _GETTIMEOFDAY: function(ctypes.c_int, pointer, pointer)(clock.gettimeofday),
    }
    _redirect(functions)
    return clock


def _redirect(functions: dict) -> None:
    """Point the engine's references to the functions of these names to Python's. Raises InputError if it has none."""
    slots = _find_slots(pystk2.__file__, set(functions))
    missing = set(functions) - {name for name, _ in slots}
    if missing:
        problem = f"not the engine this was written for (no {', '.join(sorted(missing))})"
        raise InputError(pystk2.__file__, problem, "pip install -r supertux/requirements.txt")
    library = os.path.realpath(pystk2.__file__)
    with open("/proc/self/maps") as maps:
        base = min(int(line.split("-")[0], 16) for line in maps if line.rstrip().endswith(library))
    libc = ctypes.CDLL(None, use_errno=True)
    for name, offset in slots:
        slot = base + offset
        page = slot - slot % mmap.PAGESIZE
        # the linker may have made the table read-only
        if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE):
            raise OSError(ctypes.get_errno(), "the engine's memory cannot be changed", pystk2.__file__)
        ctypes.c_uint64.from_address(slot).value = ctypes.cast(functions[name], ctypes.c_void_p).value
    _callbacks.extend(functions.values())


def _find_slots(library: str, names: set[str]) -> list[tuple[str, int]]:
    """Find where a shared library keeps the addresses of functions: (name, offset from its base).

    The tables have hundreds of thousands of rows, hence numpy; their layout is ELF64's, 24 bytes per row in both.
    """
    with open(library, "rb") as stream:
        elf = ELFFile(stream)
        symbols = np.frombuffer(elf.get_section_by_name(".dynsym").data(), dtype=_SYMBOL)
        strings = elf.get_section_by_name(".dynstr").data()
        places = {strings.find(b"\0" + name.encode() + b"\0") + 1: name for name in names}
        numbers = {n: places[symbols["name"][n]] for n in np.flatnonzero(np.isin(symbols["name"], list(places)))}
        found = []
        for section in (".rela.plt", ".rela.dyn"):
            rows = np.frombuffer(elf.get_section_by_name(section).data(), dtype=_RELOCATION)
            for row in np.flatnonzero(np.isin(rows["symbol"], list(numbers))):
                found.append((numbers[rows["symbol"][row]], int(rows["offset"][row])))
    return found
