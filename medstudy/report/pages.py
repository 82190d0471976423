"""The report: one self-contained HTML page a notebook and an index, readable without any network."""

from __future__ import annotations

import html
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medstudy.evaluation.comparison import FinishedRun, finished_runs
from medstudy.evaluation.verdict import METRIC_NAMES
from medstudy.report.privacy import WORDS, Guard, guard_of, run_folders, scan_study
from medstudy.runs import slug

if TYPE_CHECKING:
    import pandas as pd

TEMPLATES = Path(__file__).parent / "templates"


class ReportError(RuntimeError):
    """The study has nothing to report yet; the message names what is missing and the remedy."""


def build(study: str | Path) -> Path:
    """Write ``<study>/report`` from the executed notebooks, tables and figures; return its index.

    Every file of the study outside ``private/`` is scanned for text of cases that may not be shown, the
    pages too; after a hit there is no report.

    Raises:
        ReportError: the comparison notebook has not been executed, or a file repeats a case.
    """
    import pandas as pd

    from medstudy.report.documents import write_documents

    study = Path(study)
    if not (study / "comparison.ipynb").is_file():
        raise ReportError(
            f"{study}/comparison.ipynb does not exist; run the study first: medstudy run params/{study.name}"
        )
    report = study / "report"
    shutil.rmtree(report, ignore_errors=True)
    report.mkdir()
    runs = finished_runs(study)
    guard = guard_of(run_folders(study))
    scanned = _refuse_copies(study, guard)
    for run in runs:
        asked = run.parameters
        title = f"{_words(asked['task'])} · {asked['model']} · seed {asked['seed']}"
        _write_page(run.folder / "notebook.ipynb", report / _page(run), title)
    _write_page(study / "comparison.ipynb", report / "comparison.html", f"{study.name}: comparison")
    for model, notebook in _base_models(study, runs).items():
        _write_page(notebook, report / f"{slug(model)}.html", f"How {model} was made")
    verdicts = pd.read_csv(study / "verdicts.csv")
    write_documents(report, runs, verdicts.to_dict("records"))
    index = report / "index.html"
    index.write_text(_index(study, runs, _scan_sentence(guard, scanned)), encoding="utf-8")
    try:
        _refuse_copies(report, guard)
    except ReportError:
        shutil.rmtree(report)
        raise
    return index


def _refuse_copies(folder: Path, guard: Guard) -> int:
    """Scan a folder; returns how many files were read."""
    hits, files = scan_study(folder, guard)
    if hits:
        listed = "\n".join(f"  {hit}" for hit in hits[:20])
        raise ReportError(
            f"{len(hits)} places in {folder} repeat what is private; no report was written:\n{listed}\n"
            "take the output out of the notebook (or, if the source may be shown, set `shareable: true`)"
        )
    return files


def _scan_sentence(guard: Guard, files: int) -> str:
    if not guard.cases:
        return "All sources of this study may be shown: their data cards say so."
    return (
        f"{files} files outside private/ were scanned for runs of {WORDS} words, identifiers and dates of "
        f"{len(guard.cases)} cases, and for e-mail addresses and access tokens; none was found. This does "
        "not prove that they are de-identified: paraphrases and pictures are not seen."
    )


def _base_models(study: Path, runs: list[FinishedRun]) -> dict[str, Path]:
    """Executed notebooks of the built-in models that the runs used."""
    used = sorted({m for run in runs if (m := run.parameters["model"]).startswith("builtin/")})
    notebooks = {model: study.parent / "base_models" / f"{slug(model)}.ipynb" for model in used}
    return {model: notebook for model, notebook in notebooks.items() if notebook.is_file()}


def _page(run: FinishedRun) -> str:
    asked = run.parameters
    return f"{asked['task']}-{slug(asked['model'])}-seed{asked['seed']}.html"


def _write_page(notebook: Path, target: Path, title: str) -> None:
    import nbformat
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    exporter = HTMLExporter(
        config=Config(),
        template_name="page",
        extra_template_basedirs=[str(TEMPLATES)],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    exporter.register_filter("figure_words", figure_words)
    body, _ = exporter.from_notebook_node(nbformat.read(notebook, as_version=4))
    target.write_text(shell(title, body), encoding="utf-8")


def shell(title: str, body: str) -> str:
    """A whole page of the report around ``body``."""
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    nav = '<nav><a href="index.html">Study</a> <a href="comparison.html">Comparison</a></nav>'
    title = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{title}</title><style>{style}</style></head>\n'
        f"<body>{nav}<main>{body}</main></body></html>\n"
    )


def _index(study: Path, runs: list[FinishedRun], scan: str) -> str:
    import pandas as pd

    verdicts = pd.read_csv(study / "verdicts.csv")
    figure = _inline_svg(study / "figures" / "study.svg", "Every task, model and arm with 95 % intervals")
    dates = sorted(run.record["finished"][:10] for run in runs)
    data = ", ".join(sorted({run.parameters["data"] for run in runs}))
    commits = ", ".join(sorted({_commit(run.record) for run in runs}))
    device = html.escape(", ".join(sorted({run.record["device"] for run in runs})))
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    body = [
        f"<h1>{html.escape(study.name)}: is DPO worth it after SFT?</h1>",
        _verdict_table(verdicts),
        figure,
        f"<p>{len(runs)} runs, {when}, on {device}, code {html.escape(commits)}. "
        f"Data cards: {html.escape(data)}. Not for clinical use.</p>",
        '<p><a href="comparison.html">Comparison notebook</a>: forest plot, tables, costs.'
        + "".join(f' <a href="{slug(m)}.html">How {html.escape(m)} was made</a>.' for m in _base_models(study, runs))
        + "</p>",
        '<p><a href="checklist.html">Reporting checklist</a>, after TRIPOD-LLM. '
        '<a href="methods.md">Methods paragraph</a>.</p>',
        f"<p>{html.escape(scan)}</p>",
        "<h2>Runs</h2>",
        _run_table(runs),
        "<h2>Model cards and data sheets</h2>",
        _card_links(runs),
    ]
    return shell(f"{study.name}: is DPO worth it?", "\n".join(body))


def _verdict_table(verdicts: pd.DataFrame) -> str:
    """How often each verdict was reached; then a row a task and model, its evidence folded."""
    cells = verdicts.drop_duplicates(["task", "model"])
    kinds = cells["verdict"].str.split(":").str[0].value_counts()
    worth = f"DPO was worth it in {kinds.get('DPO worth it', 0)} of {len(cells)} comparisons"
    rest = ", ".join(f"{kind} {n}" for kind, n in kinds.items() if kind != "DPO worth it")
    rows = []
    for cell in cells.itertuples():
        outcomes = verdicts[(verdicts["task"] == cell.task) & (verdicts["model"] == cell.model)]
        rows.append(
            f"<tr><td>{_words(cell.task)}</td><td>{html.escape(cell.model)}</td>"
            f'<td><strong class="{_kind(cell.verdict)}">{html.escape(cell.verdict)}</strong>'
            f"<details><summary>evidence</summary>{html.escape(cell.sentence)}</details></td>"
            + "".join(f"<td>{_values(outcomes, arm)}</td>" for arm in ("sft", "sft_more", "dpo"))
            + f"<td>{'<br>'.join(METRIC_NAMES.get(name, name) for name in outcomes['outcome'])}</td></tr>"
        )
    names = ("Task", "Model", "Verdict", "SFT", "SFT continued", "DPO", "Outcome")
    head = "".join(f"<th>{name}</th>" for name in names)
    said = f"<p><strong>{worth}</strong>{f' ({html.escape(rest)})' if rest else ''}.</p>"
    return f'{said}<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _values(outcomes: pd.DataFrame, arm: str) -> str:
    return "<br>".join("" if value != value else f"{value:.2f}" for value in outcomes[arm].astype(float))


def _run_table(runs: list[FinishedRun]) -> str:
    rows = []
    for run in runs:
        asked, seconds = run.parameters, sum(value or 0 for value in run.record["seconds"].values())
        rows.append(
            f'<tr><td><a href="{_page(run)}">{_words(asked["task"])}</a></td>'
            f"<td>{html.escape(asked['model'])}</td>"
            f"<td>{asked['seed']}</td><td>{html.escape(', '.join(run.failed_gates)) or 'all passed'}</td>"
            f"<td>{seconds:.0f} s</td></tr>"
        )
    head = "<tr><th>Notebook</th><th>Model</th><th>Seed</th><th>Gates that failed</th><th>Time</th></tr>"
    return f'<div class="wide"><table>{head}{"".join(rows)}</table></div>'


def _card_links(runs: list[FinishedRun]) -> str:
    cells = dict.fromkeys((run.parameters["task"], run.parameters["model"]) for run in runs)
    items = (
        f"<li>{_words(task)}, {html.escape(model)}: "
        f'<a href="cards/{task}-{slug(model)}-model.md">model</a>, '
        f'<a href="cards/{task}-{slug(model)}-data.md">data</a></li>'
        for task, model in cells
    )
    return f"<ul>{''.join(items)}</ul>"


def _commit(record: dict[str, Any]) -> str:
    changed = " with uncommitted changes" if record.get("git_dirty") else ""
    return (record.get("git_commit") or "unknown")[:10] + changed


def figure_words(svg: str) -> str:
    """What is written in a matplotlib figure, axes' numbers left out, for those who do not see it."""
    written = dict.fromkeys(html.unescape(text) for text in re.findall(r"<!-- (.*?) -->", svg, re.DOTALL))
    words = (text for text in written if not re.fullmatch(r"[\d.,%\s\u2212-]+", text))
    return f"Figure: {', '.join(words)}"


def _inline_svg(file: Path, label: str) -> str:
    svg = re.sub(r"^.*?(?=<svg)", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    said = html.escape(f"{label}. {figure_words(svg)}")
    labelled = svg.replace("<svg ", f'<svg role="img" aria-label="{said}" ', 1)
    return f'<figure class="wide">{labelled}</figure>'


def _words(name: str) -> str:
    return html.escape(name.replace("_", " "))


def _kind(verdict: str) -> str:
    """CSS class by what the verdict says first."""
    starts = {"DPO worth it": "good", "DPO harms": "bad", "not valid": "bad"}
    return next((kind for start, kind in starts.items() if verdict.startswith(start)), "plain")
