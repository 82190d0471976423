"""The report: one self-contained HTML page a notebook and an index, readable without any network."""

from __future__ import annotations

import html
import math
import re
import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medstudy.evaluation.comparison import FinishedRun, cell_rows, finished_runs, read_tables, rules_of
from medstudy.evaluation.metrics import metric_name
from medstudy.report.privacy import Review
from medstudy.runs import slug

if TYPE_CHECKING:
    import jinja2
    import pandas as pd

TEMPLATES = Path(__file__).parent / "templates"
#: CSS class by what the verdict says first.
_KINDS = {"DPO worth it": "good", "DPO harms": "bad", "not valid": "bad"}


class ReportError(RuntimeError):
    """The study has nothing to report yet; the message names what is missing and the remedy."""


def build(study: str | Path) -> Path:
    """Write ``<study>/report`` from the executed notebooks, tables and figures; return its index.

    Of private sources only what `medstudy.report.privacy` lets through is in it; the index names the rest.

    Raises:
        ReportError: the comparison notebook has not been executed.
    """

    from medstudy.report.documents import write_documents

    study = Path(study)
    if not (study / "comparison.ipynb").is_file():
        raise ReportError(
            f"{study}/comparison.ipynb does not exist; run the study first: medstudy run params/{study.name}"
        )
    report = study / "report"
    shutil.rmtree(report, ignore_errors=True)
    report.mkdir()
    runs, review = finished_runs(study), Review(study)
    for run in runs:
        asked = run.parameters
        title = f"{_words(asked['task'])} · {asked['model']} · seed {asked['seed']}"
        _write_page(review, run.folder / "notebook.ipynb", report / page_of(run), title)
    _write_page(review, study / "comparison.ipynb", report / "comparison.html", f"{study.name}: comparison")
    verdicts = cell_rows(read_tables(study))
    write_documents(report, runs, verdicts, rules_of(study).margin)
    index = report / "index.html"
    index.write_text(_index(study, runs, verdicts, review), encoding="utf-8")
    return index


@cache
def environment() -> jinja2.Environment:
    """The report's templates."""
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES)
    made = jinja2.Environment(loader=loader, autoescape=jinja2.select_autoescape(["html.j2"]), trim_blocks=True)
    made.filters |= {
        "words": _words,
        "page": page_of,
        "slug": slug,
        "metric": metric_name,
        "number": number,
        "kind": _kind,
    }
    return made


def page_of(run: FinishedRun) -> str:
    """File name of a run's page."""
    asked = run.parameters
    return f"{asked['task']}-{slug(asked['model'])}-seed{asked['seed']}.html"


def number(value: float | None, digits: int = 2) -> str:
    """A value as tables show it; empty where there is none or where it is hidden."""
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def figure_words(svg: str) -> str:
    """What is written in a matplotlib figure, axes' numbers left out, for those who do not see it."""
    written = dict.fromkeys(html.unescape(text) for text in re.findall(r"<!-- (.*?) -->", svg, re.DOTALL))
    words = (text for text in written if not re.fullmatch(r"[\d.,%\s\u2212-]+", text))
    return f"Figure: {', '.join(words)}"


def _write_page(review: Review, notebook: Path, target: Path, title: str) -> None:
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
    body, _ = exporter.from_notebook_node(review.notebook(notebook))
    page = environment().get_template("shell.html.j2").render(title=title, body=body)
    target.write_text(page, encoding="utf-8")


def _index(study: Path, runs: list[FinishedRun], verdicts: pd.DataFrame, review: Review) -> str:
    cells = [rows.iloc[0].to_dict() | {"outcomes": rows.to_dict("records")} for _, rows in _by_cell(verdicts)]
    kinds: dict[str, int] = {}
    for cell in cells:
        kind = str(cell["verdict"]).split(":")[0]
        kinds[kind] = kinds.get(kind, 0) + 1
    worth = kinds.pop("DPO worth it", 0)
    dates = sorted({run.record["finished"][:10] for run in runs})
    return (
        environment()
        .get_template("index.html.j2")
        .render(
            title=f"{study.name}: is DPO worth it?",
            study=study.name,
            worth=worth,
            others=", ".join(f"{kind} {n}" for kind, n in kinds.items()),
            cells=cells,
            figure=_inline_svg(study / "figures" / "study.svg", "Every task, model and arm with 95 % intervals"),
            runs=runs,
            dates=" to ".join(dict.fromkeys((dates[0], dates[-1]))),
            devices=_listed(run.record["device"] for run in runs),
            commits=_listed(map(_commit, runs)),
            cards=_listed(run.parameters["data"] for run in runs),
            privacy=review.sentence(),
            kept_back=review.kept_back,
        )
    )


def _by_cell(verdicts: pd.DataFrame) -> Any:
    return verdicts.groupby(["task", "model"], sort=False)


def _listed(values: Any) -> str:
    return ", ".join(sorted(set(values)))


def _commit(run: FinishedRun) -> str:
    changed = " with uncommitted changes" if run.record.get("git_dirty") else ""
    return (run.record.get("git_commit") or "unknown")[:10] + changed


def _inline_svg(file: Path, label: str) -> str:
    svg = re.sub(r"^.*?(?=<svg)", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    said = html.escape(f"{label}. {figure_words(svg)}")
    labelled = svg.replace("<svg ", f'<svg role="img" aria-label="{said}" ', 1)
    return f'<figure class="wide">{labelled}</figure>'


def _kind(verdict: str) -> str:
    return next((kind for start, kind in _KINDS.items() if verdict.startswith(start)), "plain")


def _words(name: str) -> str:
    return name.replace("_", " ")
