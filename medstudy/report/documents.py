"""What goes with a study when it is handed on: methods paragraph, checklist, model cards and data sheets.

Everything is filled from run.json and the data cards. What a run cannot know is a named blank.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medstudy.evaluation.comparison import FinishedRun
from medstudy.report.pages import environment
from medstudy.report.privacy import card_of
from medstudy.runs import slug

BLANK = "TO BE FILLED IN BY THE AUTHORS"
_PAIR_SOURCES = {
    "own_errors": "pairs of a right answer and the SFT model's own wrong ones (samples at temperature 1)",
    "card": "pairs of the gold answer and a worse one that the source holds",
    "labels": "pairs of the gold answer and a wrong one in the same form",
    "ratings": "pairs of a better- and a worse-rated answer",
    "file": "pairs given in a file",
}
_SETTINGS = {
    "lora_rank": "rank",
    "sft_learning_rate": "SFT rate",
    "sft_epochs": "SFT epochs",
    "dpo_loss": "DPO loss",
    "dpo_beta": "beta",
    "dpo_learning_rate": "DPO rate",
    "dpo_epochs": "DPO epochs",
    "sft_more_learning_rate": "control's rate",
}


def write_documents(report: Path, runs: list[FinishedRun], judged: list[dict[str, Any]], margin: float) -> None:
    """Write ``methods.md``, ``checklist.html`` and ``cards/`` into the report.

    ``judged``: `pages.cells_of`.
    """
    (report / "cards").mkdir(exist_ok=True)
    facts = study_facts(runs) | {"margin": margin}
    for name in ("methods.md", "checklist.html"):
        (report / name).write_text(_rendered(name, **facts), encoding="utf-8")
    for (task, model), members in _cells(runs).items():
        said = next(one for one in judged if (one["task"], one["model"]) == (task, model))
        file = report / "cards" / f"{task}-{slug(model)}"
        Path(f"{file}-model.md").write_text(model_card(members, said), encoding="utf-8")
        sheet = _rendered("data_sheet.md", card=card_of(members[0].folder))
        Path(f"{file}-data.md").write_text(sheet, encoding="utf-8")


def study_facts(runs: list[FinishedRun]) -> dict[str, Any]:
    """What methods paragraph and checklist say of a study."""
    first = runs[0].record
    asked = [run.parameters for run in runs]
    cards = {run.parameters["data"]: card_of(run.folder) for run in runs}
    sizes = {f"{a['task']}: {a['n_train'] or 'all'} training, {a['n_test'] or 'all'} test" for a in asked}
    return {
        "title": "Reporting checklist",
        "models": _listed(a["model"] for a in asked),
        "seeds": _listed(a["seed"] for a in asked),
        "pair_sources": _listed(_PAIR_SOURCES.get(a["pair_source"], a["pair_source"]) for a in asked),
        "settings": "; ".join(_settings(task, model, members) for (task, model), members in _cells(runs).items()),
        "sources": "; ".join(f"{card.title} ({card.licence or 'licence not given'})" for card in cards.values()),
        "availability": "; ".join(
            f"{c.title}: {'may be shared' if c.shareable else 'private'}" for c in cards.values()
        ),
        "synthetic": all(card.synthetic for card in cards.values()),
        "built_in": all(a["model"].startswith("builtin/") for a in asked),
        "sizes": "; ".join(sorted(sizes)),
        "new_tokens": max(a["max_new_tokens"] for a in asked),
        "hours": sum(value or 0 for run in runs for value in run.record["seconds"].values()) / 3600,
        "rated": any((run.folder / "ratings.json").is_file() for run in runs),
        "failed": sum(bool(run.failed_gates) for run in runs),
        "runs": len(runs),
        "gates": max(len(run.gates) for run in runs),
        "version": first["medstudy"],
        "commit": (first.get("git_commit") or "unknown")[:10],
        "libraries": ", ".join(f"{name} {version}" for name, version in first["versions"].items()),
        "python": first["python"],
        "device": first["device"],
        "devices": _listed(run.record["device"] for run in runs),
    }


def model_card(runs: list[FinishedRun], judged: dict[str, Any]) -> str:
    """Model card of one task x model, as the hub reads it."""
    from huggingface_hub import ModelCard, ModelCardData

    first, asked = runs[0], runs[0].parameters
    source = card_of(first.folder)
    data = ModelCardData(
        base_model=asked["model"], library_name="peft", tags=["lora", "dpo", "sft"], license=source.licence or None
    )
    card = ModelCard.from_template(
        data,
        template_str=environment().loader.get_source(environment(), "model_card.md.j2")[0],
        asked=asked,
        data=source.title,
        seeds=_listed(run.parameters["seed"] for run in runs),
        pairs=first.record["pairs"],
        pair_source=_PAIR_SOURCES.get(asked["pair_source"], asked["pair_source"]),
        shareable=source.shareable,
        judged=judged,
    )
    return f"{str(card).rstrip()}\n"


def _settings(task: str, model: str, runs: list[FinishedRun]) -> str:
    """The settings of one task and model, each a value or the values that its runs had."""

    def said(value: Any) -> str:
        return " + ".join(map(str, value)) if isinstance(value, list) else f"{value:g}"

    values = (f"{words} {_listed(said(run.parameters[name]) for run in runs)}" for name, words in _SETTINGS.items())
    return f"{task.replace('_', ' ')} on {model}: {', '.join(values)}"


def _rendered(name: str, **facts: Any) -> str:
    return environment().get_template(f"{name}.j2").render(blank=BLANK, **facts).rstrip() + "\n"


def _cells(runs: list[FinishedRun]) -> dict[tuple[str, str], list[FinishedRun]]:
    cells: dict[tuple[str, str], list[FinishedRun]] = {}
    for run in runs:
        cells.setdefault((run.parameters["task"], run.parameters["model"]), []).append(run)
    return cells


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(map(str, sorted(set(values))))
