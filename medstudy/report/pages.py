"""The report: self-contained HTML pages, readable without any network, and what goes with a study when it is handed on.

A page a notebook, an index, methods paragraph, checklist, model cards and data sheets. Templates say what is said;
what a run cannot know is a named blank in them.
"""

import html
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from nbconvert import HTMLExporter

from medstudy.arms import ARMS, BASELINES, TRAINED
from medstudy.data.cases import SMALLEST_COUNT, DataError
from medstudy.evaluation.comparison import FinishedRun, finished_runs, read_tables, rules_of
from medstudy.evaluation.metrics import TRIAGE, metric_name
from medstudy.evaluation.verdict import HARMS, INVALID, WORTH
from medstudy.evaluation.views import gains, told_under, value_text
from medstudy.files import read_json, slug
from medstudy.report.figures import first_capital
from medstudy.report.privacy import Review, card_of
from medstudy.show import ENOUGH_PAIRS, ENOUGH_STEPS
from medstudy.tasks import TASK_TYPES

TEMPLATES = Path(__file__).parent / "templates"
#: CSS class by verdict.
_KINDS = {WORTH: "good", HARMS: "bad", INVALID: "bad"}
#: Words of statistics, as a page says them.
_GLOSS = {"macro-F1": "F1 (mean over classes)", "failed gates": "failed checks", "gates failed": "checks failed"}
_GLOSS |= {"answers of sft_more": "answers of SFT with the same labels", "answers of sft ": "answers of SFT "}
_GLOSS |= {"task x model": "of the single results", "majority baseline": "commonest answer"}


def build(study: str | Path) -> Path:
    """Write ``<study>/report`` from the executed notebooks, tables and figures; return its index.

    Of private sources only what `medstudy.report.privacy` lets through is in it; the index names the rest.

    Raises:
        DataError: the comparison notebook has not been executed.
    """
    study = Path(study)
    if not (study / "comparison.ipynb").is_file():
        raise DataError(
            f"{study}/comparison.ipynb does not exist; run the study first: medstudy run params/{study.name} "
            f"(of notebooks run by hand there is no report; their verdicts and tables: medstudy compare {study})"
        )
    report = study / "report"
    shutil.rmtree(report, ignore_errors=True)
    (report / "cards").mkdir(parents=True)
    runs, review = finished_runs(study), Review(study)
    for run in runs:
        asked = run.parameters
        title = f"{_words(asked['task'])} · {asked['model']} · seed {asked['seed']}"
        _write_page(review, run.folder / "notebook.ipynb", report / page_of(run), title)
    _write_page(review, study / "comparison.ipynb", report / "comparison.html", f"{study.name}: comparison")
    facts = study_facts(study, runs, review)
    for name in ("index.html", "checklist.html", "methods.md"):
        _write(report / name, name, **facts)
    for cell in facts["cells"]:
        for kind in ("model", "data"):
            _write(report / "cards" / f"{cell['task']}-{slug(cell['model'])}-{kind}.md", f"{kind}_card.md", **cell)
    return report / "index.html"


@cache
def environment() -> jinja2.Environment:
    """The report's templates."""
    loader, escape = jinja2.FileSystemLoader(TEMPLATES), jinja2.select_autoescape(["html.j2"])
    made = jinja2.Environment(loader=loader, autoescape=escape, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"words": _words, "page": page_of, "slug": slug, "gloss": _gloss, "each": _each}
    made.filters |= {"first_capital": first_capital, "kind": lambda verdict: _KINDS.get(verdict, "plain")}
    made.globals |= {"arms": ARMS, "trained": TRAINED, "blank": "TO BE FILLED IN BY THE AUTHORS"}
    made.globals |= {"enough": (ENOUGH_PAIRS, ENOUGH_STEPS), "smallest": SMALLEST_COUNT}
    return made


def page_of(run: FinishedRun) -> str:
    """File name of a run's page."""
    asked = run.parameters
    return f"{asked['task']}-{slug(asked['model'])}-seed{asked['seed']}.html"


def study_facts(study: Path, runs: list[FinishedRun], review: Review) -> dict[str, Any]:
    """What the templates are told of a study."""
    tables = read_tables(study)
    verdicts = tables["verdicts.csv"].fillna({"verdict": ""})
    told = told_under(verdicts)
    first = list(dict.fromkeys(key for (scope, _), key in told.items() if scope in ("study", "kind")))
    said = verdicts.drop_duplicates(["scope", "name"]).set_index(["scope", "name"]).loc[first].reset_index()
    cells = [cell_facts([r for r in runs if r.cell == cell], tables) for cell in dict.fromkeys(r.cell for r in runs)]
    words = f"Differences that DPO makes, with 95 % intervals. {' '.join(said['sentence'])}"
    return {
        "study": study.name,
        "findings": said.to_dict("records"),
        "runs": runs,
        "cells": cells,
        "told_first": {cell["name"] for cell in cells if told["cell", cell["name"]] in first},
        "triage": any(outcome["name"] in TRIAGE for cell in cells for outcome in cell["outcomes"]),
        "margin": rules_of(study).margin,
        "forest": _inline_svg(study / "figures" / "forest.svg", words),
        "scores": _inline_svg(study / "figures" / "study.svg", "Every task, model and arm with 95 % intervals."),
        "plan": read_json(study / "plan.json"),
        "private_cases": len(review.guard.cases),
        "kept_back": review.kept_back,
        "cards": list({run.parameters["data"]: card_of(run.folder) for run in runs}.values()),
        "hours": sum(value or 0 for run in runs for value in run.record["seconds"].values()) / 3600,
        "built_in": all(run.parameters["model"].startswith("builtin/") for run in runs),
        "commits": ", ".join(sorted({_commit(run.record) for run in runs})),
        "rated": any((run.folder / "ratings.json").is_file() for run in runs),
    }


def cell_facts(runs: list[FinishedRun], tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """What is said of a task and model: its verdict and, an outcome a line, differences, values and baselines."""
    task, model = runs[0].cell
    contrasts, metrics = (
        table[(table["task"] == task) & (table["model"] == model)]
        for table in (tables["tables/contrasts.csv"], tables["tables/metrics.csv"])
    )
    outcomes = []
    for name in dict.fromkeys(contrasts.loc[contrasts["primary"] | contrasts["metric"].isin(TRIAGE), "metric"]):
        differences = gains(contrasts[contrasts["metric"] == name].rename(columns={"metric": "outcome"}))
        cells = metrics[metrics["metric"] == name].set_index("arm").to_dict("index")
        shown = {arm: value_text(cell, 2) for arm, cell in cells.items()}
        baselines = [f"{BASELINES[arm].label} {text}" for arm, text in shown.items() if arm in BASELINES]
        against = differences.set_index("contrast")["text"].to_dict()
        outcomes.append({"name": name, "against": against, "values": shown, "baselines": baselines})
    verdicts = tables["verdicts.csv"]
    judged = verdicts[(verdicts["scope"] == "cell") & (verdicts["name"] == f"{task}, {model}")].iloc[0]
    facts = {"task": task, "kind": TASK_TYPES[task].kind, "model": model, "name": judged["name"], "runs": runs}
    few = [run.record for run in runs if run.record.get("enough_pairs") is False]
    facts["few"] = [f"{record['pairs']} pairs, {record['stages']['dpo'].get('steps', 0)} steps" for record in few]
    facts |= {"verdict": judged["verdict"], "sentence": judged["sentence"], "outcomes": outcomes}
    return facts | {"card": card_of(runs[0].folder)}


def figure_words(svg: str) -> str:
    """What is written in a matplotlib figure, axes' numbers left out, for those who do not see it."""
    written = dict.fromkeys(html.unescape(text) for text in re.findall(r"<!-- (.*?) -->", svg, re.DOTALL))
    words = (text for text in written if not re.fullmatch(r"[\d.,%\s\u2212-]+", text))
    return f"Figure: {', '.join(words)}"


def _write(target: Path, template: str, **facts: Any) -> None:
    target.write_text(environment().get_template(f"{template}.j2").render(**facts).rstrip() + "\n", encoding="utf-8")


def _write_page(review: Review, notebook: Path, target: Path, title: str) -> None:
    plain = {"exclude_input_prompt": True, "exclude_output_prompt": True}
    exporter = HTMLExporter(template_name="page", extra_template_basedirs=[str(TEMPLATES)], **plain)
    exporter.register_filter("figure_words", figure_words)
    body, _ = exporter.from_notebook_node(review.notebook(notebook))
    _write(target, "shell.html", title=title, body=body, where=title)


def _commit(record: dict[str, Any]) -> str:
    return (record.get("git_commit") or "unknown")[:10] + " with uncommitted changes" * bool(record.get("git_dirty"))


def _inline_svg(file: Path, label: str) -> str:
    svg = re.sub(r"^.*?(?=<svg)", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    said = html.escape(f"{label}. {figure_words(svg)}")
    labelled = svg.replace("<svg ", f'<svg role="img" aria-label="{said}" ', 1)
    return f'<figure class="wide">{labelled}</figure>'


def _gloss(text: str) -> str:
    """A sentence or the name of an outcome in the words of a clinic."""
    said = metric_name(text) if re.fullmatch(r"[a-zA-Z_0-9]+", text) else text
    for word, plain in _GLOSS.items():
        said = said.replace(word, plain)
    return said


def _each(runs: list[FinishedRun], name: str) -> str:
    """The values of a parameter in these runs, as they were chosen where several were tried."""
    values = [run.settings[name] for run in runs]
    texts = [" + ".join(v) if isinstance(v, list) else f"{v:g}" if isinstance(v, float) else str(v) for v in values]
    return ", ".join(dict.fromkeys(texts))


def _words(name: str) -> str:
    return name.replace("_", " ")
