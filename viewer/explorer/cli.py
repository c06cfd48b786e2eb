"""Define the command `explore`."""

import os
import signal
import socket
import sys
import threading
from pathlib import Path

from homework.labels.rows import DATA_DIR
from homework.utils.errors import InputError

HOST = "127.0.0.1"  # not reachable from other machines, as the server has no authentication


def explore(data: str = str(DATA_DIR), checkpoint: str = "vlm", clip: str = "clip", port: int = 8000) -> None:
    """Browse views on a local page: boxes, QA pairs, captions; query the VLM and CLIP; find wrong answers.

    Example: python -m viewer explore --checkpoint runs/vlm

    Args:
        data: data folder.
        checkpoint: VLM checkpoint, a PEFT folder or a base; by default the shipped one, yours is `runs/vlm`.
        clip: CLIP checkpoint, by default the shipped one. The page also works without checkpoints.
        port: port of the page's address; 0 picks a free one.

    Raises:
        InputError: no frames in `data`, or the port is in use.
    """
    import uvicorn

    from .app import make_app
    from .library import Library
    from .models import Models

    library, models = Library(Path(data)), Models(checkpoint, clip)
    try:
        listener = socket.create_server((HOST, port))  # a browser that opens the address at once waits
    except (OSError, OverflowError) as error:
        raise InputError(f"{HOST}:{port}", f"cannot listen ({error})", "choose another port: --port 8001") from None
    loading = threading.Thread(target=models.load, daemon=True)
    loading.start()
    print(f"open http://{HOST}:{listener.getsockname()[1]} in a browser; Ctrl-C ends it", flush=True)
    config = uvicorn.Config(make_app(library, models), log_level="warning", timeout_graceful_shutdown=1)
    status = 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        uvicorn.Server(config).run(sockets=[listener])  # re-raises SIGINT and SIGTERM after its shutdown
    except KeyboardInterrupt:
        print("closed", flush=True)
    except SystemExit as end:
        status = end.code
    library.close()
    if loading.is_alive():
        os._exit(status)  # the interpreter cannot exit cleanly while a thread is inside torch
    sys.exit(status)
