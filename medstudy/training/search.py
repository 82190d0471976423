"""Settings chosen on the validation split: any training parameter may be a list of values to try."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from medstudy.data.cases import Case
from medstudy.evaluation.metrics import score, task_metrics
from medstudy.evaluation.predictions import predictions_table
from medstudy.params import SEARCHED, RunParams
from medstudy.runs import Run, Stage
from medstudy.tasks.base import Task
from medstudy.training.generation import answer_cases

if TYPE_CHECKING:
    import pandas as pd

#: Trains one arm: (name of the stage, parameters without lists for it) -> the finished stage.
Fit = Callable[[str, RunParams], Stage]


def choose(
    run: Run, arm: str, params: RunParams, task: Task, validation: list[Case], fit: Fit
) -> tuple[RunParams, Stage]:
    """Train an arm with each combination of its listed settings and keep the best on validation.

    The score is the mean of the task's primary metrics; of equals the first listed wins. Without lists
    one training is all that happens. The test cases are not looked at. The table of what was tried is
    saved as ``search/<arm>.csv`` in the run's folder.

    Args:
        run: keeps the trainings and the answers.
        arm: sft, dpo or sft_more.
        params: may hold lists for the parameters in `SEARCHED[arm]`.
        task: scores the answers.
        validation: cases that no arm is trained on.
        fit: trains.

    Returns:
        The parameters with the values chosen, and the arm's training.
    """
    trials = params.trials(arm)
    listed = [name for name in SEARCHED[arm] if isinstance(getattr(params, name), list)]
    chosen = run.facts.setdefault("chosen", {})
    if len(trials) == 1:
        chosen.update({name: getattr(trials[0], name) for name in listed})
        (run.folder / "search" / f"{arm}.csv").unlink(missing_ok=True)
        return trials[0], fit(arm, trials[0])
    stages = [fit(f"{arm}-{number}", trial) for number, trial in enumerate(trials, start=1)]
    scores = [validation_score(run, task, validation, stage) for stage in stages]
    best = max(range(len(trials)), key=scores.__getitem__)
    _save(run, arm, trials, scores, best, len(validation))
    chosen.update({name: getattr(trials[best], name) for name in listed})
    # one training, under one name
    run.stages[arm] = run.stages.pop(stages[best].name)
    stages[best].name = arm
    return trials[best], stages[best]


def tried(run: Run, arm: str) -> pd.DataFrame | None:
    """What `choose` tried for an arm, one row a combination; None where there was nothing to choose."""
    import pandas as pd

    file = run.folder / "search" / f"{arm}.csv"
    return pd.read_csv(file) if file.is_file() else None


def validation_score(run: Run, task: Task, validation: list[Case], stage: Stage) -> float:
    """Mean of the task's primary metrics over the validation cases."""
    said = answer_cases(run, stage.name, task, validation, stage, stage="validation")
    table = predictions_table(task, validation, {"sft": said})
    card = task.card
    primary = [m for m in task_metrics(card.task, card.labels, card.positive) if m.primary]
    return sum(score(metric, table, card.labels) for metric in primary) / len(primary)


def _save(run: Run, arm: str, trials: list[RunParams], scores: list[float], best: int, cases: int) -> None:
    import pandas as pd

    names = [name for name in SEARCHED[arm] if isinstance(getattr(run.params, name), list)]
    table = pd.DataFrame([{name: getattr(trial, name) for name in names} for trial in trials])
    table = table.assign(validation_score=scores, cases=cases, chosen=[i == best for i in range(len(trials))])
    (run.folder / "search").mkdir(exist_ok=True)
    table.to_csv(run.folder / "search" / f"{arm}.csv", index=False)
