"""Where frames come from. `homework` never imports this package."""

import zipfile
import zlib

# What reading a broken zip raises; the last three for unknown methods, passwords, and bad names.
BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)
