"""The kernel of a job, started by `run_notebook`: python -m medstudy.batch.kernel -f CONNECTION_FILE

It cannot outlive the job. What a task's notebook imports first is imported before it answers, with the
garbage collector off: half a million new objects, none of them garbage, would be looked through a dozen
times, and again at every later collection. At the end nobody waits for the interpreter to take itself apart.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys

#: In the environment: import what trains.
PRELOAD = "MEDSTUDY_PRELOAD"


def main() -> None:
    """Serve the notebook until it is done."""
    from medstudy.batch.machine import die_with_parent

    die_with_parent()
    gc.disable()
    from ipykernel import kernelapp

    preload(bool(os.environ.pop(PRELOAD, "")))
    kernelapp.launch_new_instance()
    leave()


def preload(trains: bool) -> None:
    """Import what trains, if it is wanted, and keep all that is imported out of collections."""
    gc.disable()
    if trains:
        import datasets  # noqa: F401
        import pandas  # noqa: F401
        from trl import DPOTrainer, SFTTrainer  # noqa: F401

        import medstudy.report.figures
        import medstudy.training.fit  # noqa: F401
    gc.freeze()
    gc.enable()


def leave() -> None:
    """End this process; does not return."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()  # type: ignore[union-attr]
    os._exit(0)


if __name__ == "__main__":
    main()
