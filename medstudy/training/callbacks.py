"""What runs beside a training: its progress line, and the state that it goes on from after a kill."""

from __future__ import annotations

import html
import time
from pathlib import Path
from typing import Any

from medstudy.runs import Stage, write_json

#: Seconds that a training had taken at a checkpoint.
ELAPSED = "elapsed.json"


def keeper(stage: Stage, minutes: float) -> Any:
    """A callback that has the trainer keep its state every so many minutes, with the time it took so far."""
    import torch
    from transformers import TrainerCallback

    class Keeper(TrainerCallback):
        begun = last = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # of several processes the first one's clock counts: to save they have to meet
            due = torch.tensor(int(time.monotonic() - self.last >= 60 * minutes), device=args.device)
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.broadcast(due, 0)
            if due:
                self.last, control.should_save = time.monotonic(), True

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            if state.is_world_process_zero:
                write_json(folder / ELAPSED, stage.earlier + time.monotonic() - self.begun)

    return Keeper()


def whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: what `keeper` adds comes last."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{ELAPSED}")]
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def progress(stage: Stage) -> Any:
    """A callback that keeps one line of output and the run's status file up to date."""
    from IPython.display import display
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        last, line, begun, first = 0.0, None, 0.0, 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.begun, self.first = time.monotonic(), state.global_step

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            done = state.global_step == state.max_steps
            if "loss" not in (logs or {}) or (time.monotonic() - self.last < 1 and not done):
                return
            self.last, step, steps = time.monotonic(), state.global_step, state.max_steps
            left = round((self.last - self.begun) / max(1, step - self.first) * (steps - step))
            progress = {"step": step, "steps": steps, "loss": logs["loss"], "seconds_left": left}
            stage.run.status(stage.name, state="running", **progress)
            line = f"{stage.name}: step {step} of {steps}, loss {float(logs['loss']):.3f}"
            bar = f'<progress aria-label="{stage.name}" value="{step}" max="{steps}"></progress>'
            shown = {"text/plain": line, "text/html": f"{bar} {html.escape(line)}"}
            if self.line is None:
                self.line = display(shown, raw=True, display_id=True)
            else:
                self.line.update(shown, raw=True)

    return Progress()
