"""What goes with a study when it is handed on: methods paragraph, checklist, model cards and data sheets.

Everything is filled from run.json and the data cards. What a run cannot know is a named blank.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medstudy.data.card import DataCard
from medstudy.data.load import load_card
from medstudy.evaluation.comparison import FinishedRun
from medstudy.params import MARGIN
from medstudy.runs import slug

BLANK = "TO BE FILLED IN BY THE AUTHORS"
_SOURCES = {
    "own_errors": "pairs of a right answer and the SFT model's own wrong ones (samples at temperature 1)",
    "card": "pairs of the gold answer and a worse one that the source holds",
    "labels": "pairs of the gold answer and a wrong one in the same form",
    "ratings": "pairs of a better- and a worse-rated answer",
    "file": "pairs given in a file",
}


def write_documents(report: Path, runs: list[FinishedRun], verdicts: Sequence[dict[str, Any]]) -> list[Path]:
    """Write ``methods.md``, ``checklist.html`` and ``cards/`` into the report; return the files."""
    (report / "cards").mkdir(exist_ok=True)
    files = {
        "methods.md": methods(runs, float(verdicts[0].get("margin", MARGIN))),
        "checklist.html": checklist_page(runs),
    }
    for (task, model), members in _cells(runs).items():
        said = [row for row in verdicts if (row["task"], row["model"]) == (task, model)]
        name = f"cards/{task}-{slug(model)}"
        files[f"{name}-model.md"] = model_card(members, said)
        files[f"{name}-data.md"] = data_sheet(members[0])
    for name, text in files.items():
        (report / name).write_text(text, encoding="utf-8")
    return [report / name for name in files]


def methods(runs: list[FinishedRun], margin: float) -> str:
    """A paragraph for the methods section of a paper; ``margin`` as in verdicts.csv."""
    first, versions = runs[0], runs[0].record["versions"]
    cells = _cells(runs)
    models = ", ".join(sorted({model for _, model in cells}))
    seeds = _listed([run.parameters["seed"] for run in runs])
    searched = sorted({name for run in runs for name in run.record.get("chosen", {})})
    how = f"{', '.join(searched)} chosen on the validation split" if searched else "given by hand"
    sources = ", ".join(sorted({_SOURCES[run.parameters["pair_source"]] for run in runs}))
    tasks: dict[str, list[FinishedRun]] = {}
    for run in runs:
        tasks.setdefault(run.parameters["task"], []).append(run)
    sentences = [
        f"We compared supervised fine-tuning (SFT) with direct preference optimisation (DPO) after SFT for {models}.",
        f"Cases were split by group; test cases were the same for every seed ({seeds}). "
        "All arms answered the same test cases with the same prompts and greedy decoding.",
        "SFT trained a LoRA adapter on all linear layers, with the loss on the answers only (AdamW, linear decay). "
        f"DPO continued that adapter with the SFT model as reference on {sources}, from training cases only. "
        "As a control, SFT was continued for as many steps as DPO took. "
        f"Settings were {how}: " + "; ".join(_settings(task, members) for task, members in tasks.items()) + ".",
        "Every answer that could not be read counted as wrong. Contrasts are paired on cases. Over several seeds, "
        "intervals and tests treat cases and trainings as random (Obuchowski-Rockette, degrees of freedom by "
        "Hillis); for one seed, exact McNemar for accuracy if every case is a unit, else approximate randomisation, with BCa bootstrap; "
        f"Holm's correction over the study. Equivalence within {margin:g} was judged by two one-sided tests.",
        "Eleven checks (reference model, tokens, lost rows, frozen weights, decoding, splits, pairs, movement, "
        "likelihood displacement, reload, batching) were made in every run; "
        f"{sum(bool(run.failed_gates) for run in runs)} of {len(runs)} runs failed one or more.",
        f"Software: medstudy {first.record['medstudy']}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f", Python {first.record['python']}; device: {_listed([run.record['device'] for run in runs])}.",
    ]
    return "# Methods\n\n" + " ".join(sentences) + "\n"


def _settings(task: str, runs: list[FinishedRun]) -> str:
    """The settings of one task, each a value or the values that its runs had."""

    def values(name: str) -> str:
        found = [(run.parameters | run.record.get("chosen", {}))[name] for run in runs]
        return _listed([" + ".join(v) if isinstance(v, list) else f"{v:g}" for v in found])

    asked = runs[0].parameters
    return (
        f"{task.replace('_', ' ')} ({load_card(asked['data']).title}), {asked['n_train'] or 'all'} training and "
        f"{asked['n_test'] or 'all'} test cases, rank {values('lora_rank')}, SFT rate {values('sft_learning_rate')}, "
        f"{values('sft_epochs')} epochs, DPO loss {values('dpo_loss')}, beta {values('dpo_beta')}, rate "
        f"{values('dpo_learning_rate')}, {values('dpo_epochs')} epochs, control's rate {values('sft_more_learning_rate')}"
    )


def checklist(runs: list[FinishedRun]) -> list[tuple[str, str, str]]:
    """Section, what to report, and what this study says of it or `BLANK`.

    After the topics of TRIPOD-LLM (Gallifant et al., Nat Med 2025;31:60-69), in our own words; the
    statement itself has the numbered items.
    """
    first = runs[0]
    cards = {run.parameters["data"]: load_card(run.parameters["data"]) for run in runs}
    sources = "; ".join(f"{c.title} ({c.licence or 'licence not given'})" for c in cards.values())
    counts = sorted({(r.parameters["task"], r.parameters["n_train"], r.parameters["n_test"]) for r in runs})
    sizes = "; ".join(f"{task}: {train or 'all'} training, {test or 'all'} test" for task, train, test in counts)
    models = ", ".join(sorted({run.parameters["model"] for run in runs}))
    seconds = sum(value or 0 for run in runs for value in run.record["seconds"].values())
    synthetic = [c.title for c in cards.values() if c.synthetic]
    commit = first.record.get("git_commit") or "unknown"
    return [
        ("Title and abstract", "Study named as development or evaluation of an LLM; task, population, outcome", BLANK),
        ("Introduction", "Clinical context and rationale", BLANK),
        ("Introduction", "Objective", "Whether DPO after SFT answers more test cases right than SFT alone, and than SFT continued as long"),
        ("Methods: data", "Sources and licences", sources),
        ("Methods: data", "Setting, dates and eligibility of the patients", "Synthetic: no patients" if len(synthetic) == len(cards) else BLANK),
        ("Methods: data", "Numbers of cases and how they were split", f"{sizes}; split by group, test cases the same for every seed"),
        ("Methods: data", "Preparation and missing data", "As the data cards say; every row that was left out is counted in the notebooks' audit"),
        ("Methods: data", "Overlap of test data with the model's own pretraining", "Excluded by construction for built-in models" if all(r.parameters["model"].startswith("builtin/") for r in runs) else BLANK),
        ("Methods: model", "Model, version and source", models),
        ("Methods: model", "Fine-tuning and alignment", "See methods.md; parameters of every run in run.json"),
        ("Methods: model", "Prompts", "Printed in every notebook; few-shot examples are training cases"),
        ("Methods: model", "Decoding settings", f"Greedy, at most {max(r.parameters['max_new_tokens'] for r in runs)} new tokens; samples for pairs at temperature 1"),
        ("Methods: output", "How answers were read, and unreadable ones counted", "Parsed by rule; unreadable answers count as wrong and are reported by arm"),
        ("Methods: annotation", "Who annotated, instructions, agreement", BLANK),
        ("Methods: evaluation", "Outcomes and statistics", "See methods.md. Whether margins and tests were fixed beforehand: " + BLANK),
        ("Methods: evaluation", "Fairness and subgroups", BLANK),
        ("Methods: evaluation", "Human evaluation", "ratings.json of the runs" if any((r.folder / "ratings.json").is_file() for r in runs) else BLANK),
        ("Methods", "Compute", f"{seconds / 3600:.1f} h of training and answering in all, on {first.record['device']}"),
        ("Ethics", "Approval and consent", "Not needed: synthetic cases" if len(synthetic) == len(cards) else BLANK),
        ("Open science", "Funding, conflicts, registration, protocol", BLANK),
        ("Open science", "Code", f"medstudy {first.record['medstudy']}, commit {commit[:10]}"),
        ("Open science", "Data availability", "; ".join(f"{c.title}: {'may be shared' if c.shareable else 'private'}" for c in cards.values())),
        ("Involvement", "Patients and public", BLANK),
        ("Results", "Numbers analysed", f"{len(runs)} runs; n stands beside every number"),
        ("Results", "Performance with intervals", "comparison.html, verdicts.csv, tables/"),
        ("Results", "Failed checks", f"{sum(bool(r.failed_gates) for r in runs)} of {len(runs)} runs; named in the verdicts"),
        ("Discussion", "Interpretation and limitations", BLANK),
        ("Discussion", "Intended use, oversight, and what is needed before use", "Not for clinical use; " + BLANK),
    ]  # fmt: skip


def checklist_page(runs: list[FinishedRun]) -> str:
    """The checklist as a page of the report."""
    from medstudy.report.pages import shell

    items = checklist(runs)
    filled = sum(BLANK not in said for _, _, said in items)
    rows = "".join(
        f"<tr><td>{html.escape(section)}</td><td>{html.escape(asked)}</td><td>{_cell(said)}</td></tr>"
        for section, asked, said in items
    )
    body = (
        "<h1>Reporting checklist</h1><p>After the topics of TRIPOD-LLM (Gallifant et al., Nat Med 2025;31:60-69), "
        f"in our words. {filled} of {len(items)} are filled from the runs; the rest is the authors'.</p>"
        f'<div class="wide"><table><tr><th>Section</th><th>What to report</th><th>Here</th></tr>{rows}</table></div>'
    )
    return shell("Reporting checklist", body)


def model_card(runs: list[FinishedRun], verdicts: Sequence[dict[str, Any]]) -> str:
    """Model card of one task x model."""
    first, asked = runs[0], runs[0].parameters
    lines = [
        f"# Adapters for {asked['task']} on {asked['model']}",
        "",
        f"- Base: {asked['model']}. LoRA adapters `sft`, `sft_more`, `dpo`; seeds {_listed([r.parameters['seed'] for r in runs])}.",
        f"- Trained on: {asked['data']}, {asked['n_train'] or 'all'} cases; DPO on {first.record['pairs']} pairs "
        f"({_SOURCES[asked['pair_source']]}).",
        "- Intended use: research on fine-tuning methods. Not for clinical use.",
        f"- Publishing: {_publishing(first)}",
        f"- Limits: tested on {asked['n_test'] or 'all'} cases of one source; no subgroup was looked at.",
        "",
        "| outcome | SFT | SFT continued | DPO | verdict |",
        "|---|---|---|---|---|",
    ]
    for row in verdicts:
        values = " | ".join(f"{row[arm]:.3f}" if row[arm] is not None else "" for arm in ("sft", "sft_more", "dpo"))
        lines.append(f"| {row['outcome']} | {values} | {row['verdict']} |")
    return "\n".join(lines) + "\n"


def data_sheet(run: FinishedRun) -> str:
    """Data sheet of a run's source, from its card."""
    card: DataCard = load_card(run.parameters["data"])
    facts = {
        "Title": card.title,
        "Description": card.description or BLANK,
        "Licence": card.licence or BLANK,
        "Citation": card.citation or ("none: generated" if card.synthetic else BLANK),
        "Synthetic": "yes" if card.synthetic else "no",
        "May be shown": "yes" if card.shareable else "no: private",
        "Question that the model reads": card.question,
        "Answers": "; ".join(f"{name}: {', '.join(labels)}" for name, labels in card.labels.items()) or "free text",
        "Columns left out because they give the answer away": ", ".join(card.columns.exclude) if card.columns else "",
        "Who collected it, why, and with what consent": "nobody: generated" if card.synthetic else BLANK,
        "Who is missing in it": "everybody: no patient is in it" if card.synthetic else BLANK,
    }
    return f"# Data sheet: {card.title}\n\n" + "".join(f"- **{k}**: {v}\n" for k, v in facts.items() if v)


def _publishing(run: FinishedRun) -> str:
    if run.record.get("shareable"):
        return "the data card says that the source may be shared."
    return "trained on private data, do not publish."


def _cell(said: str) -> str:
    return f"<strong>{BLANK.lower()}</strong>" if said == BLANK else html.escape(said)


def _cells(runs: list[FinishedRun]) -> dict[tuple[str, str], list[FinishedRun]]:
    cells: dict[tuple[str, str], list[FinishedRun]] = {}
    for run in runs:
        cells.setdefault((run.parameters["task"], run.parameters["model"]), []).append(run)
    return cells


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(str(value) for value in sorted(set(values)))
