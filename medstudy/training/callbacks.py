"""What runs beside a training: its progress line, and the state that it goes on from after a kill."""

from __future__ import annotations

import html
import time
from pathlib import Path
from typing import Any

from medstudy.runs import Stage, write_json

#: Seconds that a training had taken at a checkpoint; written last, so it marks a whole one.
ELAPSED = "elapsed.json"


def beside(stage: Stage, minutes: float) -> Any:
    """A callback: a line of output kept up to date, the trainer's state kept every so many minutes, order by seed."""
    import torch
    from IPython.display import display
    from transformers import TrainerCallback

    class Beside(TrainerCallback):
        begun = kept = time.monotonic()
        shown, first, line = 0.0, 0, None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.begun, self.first = time.monotonic(), state.global_step

        def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any, **kwargs: Any) -> None:
            # a sampler by length draws from the state of the process: after a kill, another order of the same epoch
            sampler = train_dataloader.batch_sampler.sampler
            if hasattr(sampler, "lengths"):
                sampler.generator = torch.Generator().manual_seed(1_000_003 * args.seed + int(state.epoch or 0))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if time.monotonic() - self.kept >= 60 * minutes:
                self.kept, control.should_save = time.monotonic(), True

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            write_json(folder / ELAPSED, stage.earlier + time.monotonic() - self.begun)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            step, steps, now = state.global_step, state.max_steps, time.monotonic()
            if "loss" not in (logs or {}) or (now - self.shown < 1 and step < steps):
                return
            self.shown = now
            left = round((now - self.begun) / max(1, step - self.first) * (steps - step))
            told = {"step": step, "steps": steps, "loss": logs["loss"], "seconds_left": left}
            stage.run.status(stage.name, state="running", **told)
            line = f"{stage.name}: step {step} of {steps}, loss {float(logs['loss']):.3f}"
            bar = f'<progress aria-label="{stage.name}" value="{step}" max="{steps}"></progress>'
            data = {"text/plain": line, "text/html": f"{bar} {html.escape(line)}"}
            if self.line is None:
                self.line = display(data, raw=True, display_id=True)
            else:
                self.line.update(data, raw=True)

    return Beside()


def whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{ELAPSED}")]
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)
