"""What Snakemake itself says of its jobs, as a line a job; attached to its logger by the Snakefile."""

import logging
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Progress(logging.Handler):
    """Prints ``[3/12] task model seed 0 ok 41 s`` as jobs end, or ``failed`` and why."""

    def __init__(self, models: Mapping[str, str], dry: bool = False) -> None:
        """``models``: names of the models by their folders'; ``dry``: says why each would run."""
        super().__init__(logging.INFO)
        self.models, self.dry = models, dry
        self.jobs: dict[int, tuple[str, float]] = {}
        self.ended: set[int] = set()
        self.total = 0

    def emit(self, record: Any) -> None:
        """Take one of Snakemake's events."""
        event = getattr(record, "event", None)
        if event == "run_info":
            self.total = record.stats["total"] - record.stats.get("all", 0)
        elif event == "job_info" and record.rule_name != "all":
            model, seed = record.wildcards.get("model"), record.wildcards.get("seed")
            name = f"{record.rule_name} {self.models[model]} seed {seed}" if model else record.rule_name
            self.jobs[record.jobid] = (name, time.time())
            if self.dry:
                print(f"{name}: {textwrap.shorten(record.reason, 120, placeholder=' …')}", flush=True)
        elif event == "job_finished" and record.job_id in self.jobs:
            self._end(record.job_id, "ok")
        elif event == "job_error" and record.jobid in self.jobs:
            self._end(record.jobid, "failed", f": {self._why(record.jobid, record.log, record.rule_msg)}")

    def _end(self, job: int, state: str, why: str = "") -> None:
        name, begun = self.jobs[job]
        self.ended.add(job)
        print(f"[{len(self.ended)}/{self.total}] {name} {state} {time.time() - begun:.0f} s{why}", flush=True)

    def _why(self, job: int, logs: Sequence[str], said: str | None) -> str:
        """What a job's log says last, if it is of this start: only what is meant for a terminal.

        Else what the executor ``said``: Slurm's reason to refuse or end it, without the call of sbatch, and the log
        that Slurm wrote, which comes last.
        """
        (name, begun), log = self.jobs[job], Path(logs[0])
        if log.is_file() and log.stat().st_mtime > begun - 1:
            for line in reversed(log.read_text(encoding="utf-8", errors="replace").splitlines()):
                for start in (f"FAILED {name}: ", "medstudy: "):
                    if line.startswith(start):
                        return line.removeprefix(start)
        if said:
            return " ".join(said.partition("    sbatch call:")[0].split()) + f" Log: {logs[-1]}" * (len(logs) > 1)
        return f"it ended without saying why (killed, or the disk is full?); see {log}"
