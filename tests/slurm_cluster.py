"""A real Slurm of one node on this machine: munged, slurmctld and slurmd from Debian, no systemd, no cgroups.

It writes /etc/slurm and needs root, so tests start it only where MEDSTUDY_SLURM says that this is wanted.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
WANTED = bool(os.environ.get("MEDSTUDY_SLURM")) and all(map(shutil.which, PROGRAMS)) and os.geteuid() == 0
HOST = socket.gethostname().split(".")[0]
CONFIG = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
AccountingStorageType=accounting_storage/none
ReturnToService=2
MinJobAge=300
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """Started on entry, stopped on exit; one stand-in GPU, which Slurm counts and hands out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o711)
        subprocess.run(["mknod", str(self.folder / "gpu0"), "c", "1", "3"], check=True)
        Path("/etc/slurm").mkdir(exist_ok=True)
        Path("/etc/slurm/slurm.conf").write_text(CONFIG.format(host=HOST, folder=self.folder))
        Path("/etc/slurm/gres.conf").write_text(f"Name=gpu File={self.folder}/gpu0\n")
        munge = Path("/run/munge")
        munge.mkdir(exist_ok=True, mode=0o755)
        shutil.chown(munge, "munge", "munge")
        self._start("runuser", "-u", "munge", "--", "munged", "--foreground")
        self._until(lambda: subprocess.run(["munge", "-n"], capture_output=True).returncode == 0, "munged")
        self._start("slurmctld", "-D")
        self._start("slurmd", "-D")
        self._until(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%t"), "slurmd")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._running):
            process.terminate()
            process.wait()

    def ask(self, *command: str) -> str:
        """Output of one of Slurm's commands."""
        return subprocess.run(command, capture_output=True, text=True).stdout

    def _start(self, *command: str) -> None:
        log = (self.folder / f"{Path(command[-2] if command[0] == 'runuser' else command[0]).name}.out").open("w")
        self._running.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))

    def _until(self, true: object, what: str) -> None:
        deadline = time.monotonic() + 30
        while not true():  # type: ignore[operator]
            assert time.monotonic() < deadline, f"{what} is not up; see the logs in {self.folder}"
            time.sleep(0.1)
