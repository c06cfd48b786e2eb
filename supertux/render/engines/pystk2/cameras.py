"""From where the engine's cameras look at the karts they follow, which pystk2 has no setting for.

The game looks back from ahead of a kart while its player asks for it, and in the release of the course's frames from
the end of the race on. The engine's own functions do it here: its shared library exports them.
"""

import ctypes

import pystk2

from homework.utils.errors import InputError

REVERSE = 2  # of the engine's `Camera::Mode`, as in pystk2.Camera.Mode
_CAMERAS = "_ZN6Camera13m_all_camerasE"  # std::vector<Camera*> Camera::m_all_cameras
_SET_MODE = "_ZN6Camera7setModeENS_4ModeE"  # void Camera::setMode(Camera::Mode)


def look_back() -> None:
    """Let all cameras look at their karts from the front, from the next step on and until they are told otherwise.

    Raises:
        InputError: the installed engine has no such functions.
    """
    library = ctypes.CDLL(pystk2.__file__)
    try:
        set_mode = library[_SET_MODE]
        begin, end = (ctypes.c_uint64 * 2).in_dll(library, _CAMERAS)  # a vector begins with these pointers
    except (AttributeError, ValueError):
        problem = "not the engine this was written for (no Camera::setMode)"
        raise InputError(pystk2.__file__, problem, "pip install -r supertux/requirements.txt") from None
    set_mode.argtypes, set_mode.restype = [ctypes.c_void_p, ctypes.c_int], None
    for place in range(begin, end, ctypes.sizeof(ctypes.c_void_p)):
        set_mode(ctypes.c_uint64.from_address(place).value, REVERSE)
