"""Reverse cameras, for which pystk2 has no setting.

The game looks back from ahead of a kart while its player asks for it, and in the legacy engine from the end of the race
on. This calls the engine's own functions, which its shared library exports.
"""

import ctypes

import pystk2

from homework.utils.errors import InputError

REVERSE_MODE = 2  # of the engine's `Camera::Mode`, as in pystk2.Camera.Mode
_ALL_CAMERAS = "_ZN6Camera13m_all_camerasE"  # std::vector<Camera*> Camera::m_all_cameras
_SET_MODE = "_ZN6Camera7setModeENS_4ModeE"  # void Camera::setMode(Camera::Mode)


def set_reverse_cameras() -> None:
    """Show the targets of all cameras from the front, from the next step on. Raises InputError for another engine."""
    library = ctypes.CDLL(pystk2.__file__)
    try:
        set_mode = library[_SET_MODE]
        begin, end = (ctypes.c_uint64 * 2).in_dll(library, _ALL_CAMERAS)  # a vector begins with these pointers
    except (AttributeError, ValueError):
        problem = "not the engine this was written for (no Camera::setMode)"
        raise InputError(pystk2.__file__, problem, "pip install -r supertux/requirements.txt") from None
    set_mode.argtypes, set_mode.restype = [ctypes.c_void_p, ctypes.c_int], None
    for address in range(begin, end, ctypes.sizeof(ctypes.c_void_p)):
        set_mode(ctypes.c_uint64.from_address(address).value, REVERSE_MODE)
