"""A `dira` for the path whose every process is forked from one that has imported torch already.

What such a process prints, writes and exits with is what `dira` does; only the seconds of imports
are not paid again. It computes in one thread.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

AHEAD = (
    "dira_core.api",
    "dira_core.cli",
    "dira_core.exports",
    "dira_core.imports",
    "dira_core.report",
    "dira_core.study",
    "dira_core.transfer",
    "torchvision.models",
    *("sklearn.linear_model", "sklearn.metrics", "sklearn.model_selection", "scipy.ndimage"),
)
"""What the parent imports: nothing that asks which plugins there are."""

DIRA = f"""#!{sys.executable} -IS
import json
import os
import socket
import sys

with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.path.dirname(__file__) + "/server")
    asked = [sys.argv[1:], os.getcwd(), dict(os.environ)]
    socket.send_fds(server, [json.dumps(asked).encode()], [0, 1, 2])
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.recv(8) or 1))
"""


@contextmanager
def spare(folder: Path) -> Iterator[Path]:
    """Start the parent; yield the folder of the program `dira`, as long as there is one."""
    (folder / "dira").write_text(DIRA)
    (folder / "dira").chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/server")
        listener.listen()
        parent = subprocess.Popen(
            [sys.executable, __file__, str(listener.fileno())],
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # torch reads it once
            pass_fds=[listener.fileno()],
        )
    try:
        yield folder
    finally:
        parent.terminate()
        parent.wait()


def serve(listener: socket.socket) -> None:
    """Fork a process for every command; return in each of them, and never in the parent."""
    gc.freeze()  # or the children's collections would copy every page
    while True:
        asking, _ = listener.accept()
        message, descriptors, *_ = socket.recv_fds(asking, 1 << 20, 3)
        while more := asking.recv(1 << 20):
            message += more
        if os.fork():
            asking.close()
            for descriptor in descriptors:
                os.close(descriptor)
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
        elif pid := os.fork():  # beside other commands
            _, status = os.waitpid(pid, 0)
            asking.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)
        else:
            listener.close()
            asking.close()
            arguments, folder, environment = json.loads(message)
            for standard, descriptor in enumerate(descriptors):
                os.dup2(descriptor, standard)
                os.close(descriptor)
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(environment)
            sys.argv[1:] = arguments
            return


if __name__ == "__main__":
    del sys.path[0]  # the folder of the tests is on no reader's path
    for name in AHEAD:
        importlib.import_module(name)
    serve(socket.socket(fileno=int(sys.argv[1])))
    sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    from dira_core.cli import main

    code = 1
    try:
        main()
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:
        traceback.print_exc()
    # what an interpreter does at its end, but for taking half a million objects apart
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
