"""What Snakemake itself says of its jobs, as a line a job; attached to its logger by the Snakefile."""

from __future__ import annotations

import logging
import re
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medstudy.batch.machine import remedy


class Progress(logging.Handler):
    """Prints ``[3/12] task model seed 0 ok 41 s`` as jobs end, and keeps what failed and what had changed."""

    def __init__(self, models: Mapping[str, str]) -> None:
        """``models``: names of the models by their folders'."""
        super().__init__(logging.INFO)
        self.models = models
        self.jobs: dict[int, tuple[str, float]] = {}
        self.ended: set[int] = set()
        self.failed: dict[int, str] = {}
        self.changed: set[str] = set()
        self.total = 0

    def emit(self, record: Any) -> None:
        """Take one of Snakemake's events."""
        from snakemake.common import NOTHING_TO_BE_DONE_MSG

        event = getattr(record, "event", None)
        if event == "run_info":
            self.total = record.stats["total"] - record.stats.get("all", 0)
        elif event == "job_info" and record.rule_name != "all":
            model, seed = record.wildcards.get("model"), record.wildcards.get("seed")
            name = f"{record.rule_name} {self.models[model]} seed {seed}" if model else record.rule_name
            self.jobs[record.jobid] = (name, time.time())
            self._note_change(record.rule_name, record.reason)
        elif event == "job_finished" and record.job_id in self.jobs:
            self.failed.pop(record.job_id, None)
            self._end(record.job_id, "ok")
        elif event == "job_error" and record.jobid in self.jobs:
            self.failed[record.jobid] = self._why(record.jobid, record.log)
            self._end(record.jobid, "failed")
        if record.msg == NOTHING_TO_BE_DONE_MSG or (event == "run_info" and not self.total):
            print("nothing to do: every run is finished and up to date", flush=True)

    def close_study(self, file: Path) -> None:
        """Say what made jobs run again; write a line for each failure to ``file`` and on stderr."""
        if self.changed:
            print(f"run again because of what changed: {', '.join(sorted(self.changed))}", flush=True)
        if self.failed:
            text = "".join(f"failed: {line}\n" for line in self.failed.values())
            try:
                file.write_text(text, encoding="utf-8")
                print(text, end="", file=sys.stderr)
            except OSError:  # on a full disk the terminal is all that is left
                file.unlink(missing_ok=True)
                print(text, end="", flush=True)

    def _note_change(self, rule: str, reason: str) -> None:
        """Keep the changed files that are nobody's result, and which of the keys are others."""
        told = set(re.findall(r"(code cells|parameters|data):([0-9a-f]+)", reason))  # as they were, and as they are
        names = [name for name, _ in told]
        self.changed |= {f"{name} of {rule}" for name in names if names.count(name) > 1}
        files = reason.partition("Updated input files: ")[2].partition("; ")[0].split(", ")
        self.changed |= {name.strip() for name in files if name.strip() and not name.endswith((".json", ".done"))}

    def _end(self, job: int, state: str) -> None:
        name, begun = self.jobs[job]
        self.ended.add(job)
        print(f"[{len(self.ended)}/{self.total}] {name} {state} {time.time() - begun:.0f} s", flush=True)

    def _why(self, job: int, logs: list[str]) -> str:
        """What a job's log says last, if it is of this start: only what is meant for a terminal."""
        name, begun = self.jobs[job]
        log = Path(logs[0])
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        if text and log.stat().st_mtime > begun - 1:
            for start in (f"FAILED {name}: ", "medstudy: "):
                if start in text:
                    return f"{name}: {text.rsplit(start, 1)[1].strip()}"
        if shutil.disk_usage(log.parent).free < 2**20:  # then the log could not be written either
            return f"{name}: {remedy('No space left on device').removeprefix('; ')}"
        return f"{name}: ended without saying why (killed?); see {log}"
