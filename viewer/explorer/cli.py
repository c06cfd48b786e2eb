"""The command `explore`: a local page to browse views and to ask the models about them."""

import os
import signal
import socket
import sys
import threading
from pathlib import Path

from homework.labels.rows import DATA_DIR
from homework.utils.errors import InputError

HOST = "127.0.0.1"  # the page can ask the models anything: it is for this machine alone


def explore(
    data: str = str(DATA_DIR),
    checkpoint: str = "homework/weights/vlm",
    clip: str = "homework/weights/clip",
    port: int = 8000,
) -> None:
    """Browse views on a local page: boxes, pairs, captions; ask the VLM and CLIP; find wrong answers.

    Example: python -m viewer explore --checkpoint runs/demo/vlm

    Args:
        data: the data folder.
        checkpoint: of the VLM: a PEFT folder or a base; without it the page opens too.
        clip: checkpoint of the CLIP; without it the page opens too.
        port: of the page's address; 0 takes a free one.

    Raises:
        InputError: no frames in `data`, or the port is taken.
    """
    import uvicorn

    from .app import make_app
    from .library import Library
    from .models import Models

    library, models = Library(Path(data)), Models(checkpoint, clip)
    listener = _listen(port)
    loading = threading.Thread(target=models.load, daemon=True)
    loading.start()
    print(f"open http://{HOST}:{listener.getsockname()[1]} in a browser; Ctrl-C ends it", flush=True)
    config = uvicorn.Config(make_app(library, models), log_level="warning", timeout_graceful_shutdown=1)
    status = 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        uvicorn.Server(config).run(sockets=[listener])  # which gives SIGINT and SIGTERM on once it has ended
    except KeyboardInterrupt:
        print("closed", flush=True)
    except SystemExit as end:
        status = end.code
    library.close()
    if loading.is_alive():
        os._exit(status)  # the interpreter can't end while a thread is inside of torch
    sys.exit(status)


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()  # who opens the address as soon as it is printed waits, and isn't refused
    except (OSError, OverflowError) as error:
        raise InputError(f"{HOST}:{port}", f"can't be used ({error})", "name another one: --port 8001") from None
    return listener
