"""Kernels that are ready at once: one process of a study imports what trains; each kernel is a fork of it.

    python -m medstudy.batch.forkserver FD

A kernel begins as that process was after its imports, so no run sees seeds, caches or memory of another,
and what nobody writes to is in memory once. `medstudy run` starts it for runs without a GPU (a driver that
has been asked cannot be forked), on Linux, when the first of them asks. Without it, on a cluster, when it
has died or a file of the package has changed, kernels start as Jupyter starts them.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medstudy.batch.machine import die_with_parent

#: In the environment of jobs: where to ask for a kernel.
ADDRESS = "MEDSTUDY_FORKSERVER"
REQUEST_BYTES = 1 << 20
#: Seconds that a job waits for the server to import before it starts a kernel of its own.
PATIENCE = 120


class ForkServer:
    """The server as `medstudy run` sees it: a socket, and a process behind it once somebody has asked."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.address = str(folder / "forkserver")
        self.environment = dict(environment)
        self.process: subprocess.Popen[bytes] | None = None
        self.door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.door.bind(self.address)
        self.door.listen()

    def attend(self) -> None:
        """Start the process if somebody asks and it is not there; if it has died, turn everybody away."""
        if self.door.fileno() == -1:
            return
        if self.process is None:
            if select.select([self.door], [], [], 0)[0]:
                door = self.door.fileno()
                with contextlib.suppress(OSError):
                    self.process = subprocess.Popen(
                        [sys.executable, "-m", "medstudy.batch.forkserver", str(door)],
                        env=os.environ | self.environment,
                        pass_fds=[door],
                        stdin=subprocess.DEVNULL,
                        # Ctrl-C is for the engine, which ends its jobs, whose kernels end with them
                        start_new_session=True,
                        preexec_fn=die_with_parent,
                    )
                if self.process is None:
                    self.door.close()
        elif self.process.poll() is not None:
            self.door.close()

    def close(self) -> None:
        """End the process, and with it every kernel that is left."""
        self.door.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def fork_server(threads: int) -> Iterator[ForkServer | None]:
    """A server for jobs of so many threads; None where there can be none.

    Its address is in this process's environment meanwhile, for the jobs.
    """
    from medstudy.batch.run_notebook import job_environment

    with tempfile.TemporaryDirectory(prefix="medstudy-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        try:
            os.close(os.pidfd_open(os.getpid()))  # type: ignore[attr-defined,unused-ignore]
            server = ForkServer(folder, job_environment(folder, folder, threads, []))
        except (AttributeError, OSError):  # another system, an old kernel, a path too long for a socket
            yield None
            return
        os.environ[ADDRESS] = server.address
        try:
            yield server
        finally:
            os.environ.pop(ADDRESS, None)
            server.close()


class Forked:
    """A kernel that the server has forked: as much of `subprocess.Popen` as `jupyter_client` asks for."""

    stdin = stdout = stderr = None

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.connection = connection
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Exit code, negative for a signal, or None while it runs."""
        if self.returncode is None and select.select([self.connection], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        if self.returncode is None:
            # a server that has gone without a word took its kernels along
            self.returncode = int(self.connection.recv(64) or -signal.SIGKILL)
            self.connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


def fork_kernel(argv: Sequence[str], env: Mapping[str, str], outputs: Sequence[int]) -> Forked | None:
    """Ask for a kernel, and wait for it; None if there is nobody to ask.

    Args:
        argv: for the kernel, such as ``["-f", connection file]``.
        env: its whole environment.
        outputs: descriptors that become its stdout and stderr.
    """
    if ADDRESS not in os.environ:
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(PATIENCE)
    request = json.dumps({"argv": list(argv), "env": dict(env), "folder": str(Path.cwd())}).encode()
    with contextlib.suppress(OSError):
        connection.connect(os.environ[ADDRESS])
        socket.send_fds(connection, [request], list(outputs))
        if pid := connection.recv(64):  # while the server imports, this waits
            connection.settimeout(None)
            return Forked(connection, int(pid))
    connection.close()
    return None


def main() -> None:
    """Import, then fork a kernel for everybody who asks."""
    server, files = os.getpid(), _package_files()
    from ipykernel import kernelapp

    from medstudy.batch.kernel import leave, preload

    preload(trains=True)
    request, outputs = _a_fork_for_each_request(socket.socket(fileno=int(sys.argv[1])), files)
    die_with_parent()
    if os.getppid() != server:  # it has died already
        os._exit(1)
    _become(request, outputs)
    kernelapp.launch_new_instance(argv=[*request["argv"], f"--IPKernelApp.parent_handle={server}"])
    leave()


def _package_files() -> dict[Path, int]:
    """Every file of the package, and when it was written; of a link the link, as it may lead nowhere."""
    return {path: path.lstat().st_mtime_ns for path in Path(__file__).parents[1].rglob("*.py")}


def _can_be_forked(request: Mapping[str, Any], files: dict[Path, int]) -> bool:
    """Whether what was imported here is what the run will say that it used, and its threads are as many."""
    threads = request["env"].get("OMP_NUM_THREADS")
    return files == _package_files() and threads == os.environ.get("OMP_NUM_THREADS")


def _a_fork_for_each_request(door: socket.socket, files: dict[Path, int]) -> tuple[dict[str, Any], list[int]]:
    """Serve for ever. Returns in each fork, with the request that it was made for."""
    watched = selectors.DefaultSelector()
    watched.register(door, selectors.EVENT_READ)
    while True:
        for key, _ in watched.select():
            if key.fileobj is door:
                asker, _ = door.accept()
                message, outputs, _, _ = socket.recv_fds(asker, REQUEST_BYTES, 2)
                request = json.loads(message or b"null")
                pid = None
                with contextlib.suppress(OSError):  # no memory for it, say: the others live on
                    pid = os.fork() if request and _can_be_forked(request, files) else None
                if pid == 0:
                    for end in (asker, *(key.fileobj for key in watched.get_map().values())):
                        os.close(end if isinstance(end, int) else end.detach())
                    return request, outputs
                for descriptor in outputs:
                    os.close(descriptor)
                if pid is None:
                    asker.close()
                    continue
                _tell(asker, pid)
                kernel = os.pidfd_open(pid)
                for end in (asker, kernel):
                    watched.register(end, selectors.EVENT_READ, (asker, kernel))
            elif key.fileobj is key.data[0]:
                # it says nothing, so it has ended; its kernel ends as if it were its child
                asker, kernel = key.data
                if asker.fileno() != -1:
                    signal.pidfd_send_signal(kernel, signal.SIGKILL)
                    watched.unregister(asker)
                    asker.close()
            else:
                asker, kernel = key.data
                ended = os.waitid(os.P_PIDFD, kernel, os.WEXITED)
                watched.unregister(kernel)
                os.close(kernel)
                if asker.fileno() != -1:
                    _tell(asker, ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status)
                    watched.unregister(asker)
                    asker.close()


def _tell(asker: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # it may have ended
        asker.send(str(number).encode())


def _become(request: Mapping[str, Any], outputs: Sequence[int]) -> None:
    """Take on folder, environment and outputs of the job; a session of its own, as Jupyter gives a kernel."""
    import datasets
    import numpy

    os.setsid()
    for number, descriptor in enumerate(outputs, start=1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["env"])
    # what was read or drawn on import and differs between jobs; the folders may hold cases
    cache = Path(os.environ["HF_DATASETS_CACHE"])
    datasets.config.HF_DATASETS_CACHE = cache
    datasets.config.DOWNLOADED_DATASETS_PATH = cache / "downloads"
    datasets.config.EXTRACTED_DATASETS_PATH = cache / "downloads" / "extracted"
    numpy.random.seed()


if __name__ == "__main__":
    main()
