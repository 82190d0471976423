"""The report: one self-contained HTML page a notebook and an index, readable without any network."""

from __future__ import annotations

import html
import json
import re
import shutil
from functools import cache
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from medstudy.arms import ARMS, BASELINES, TRAINED
from medstudy.data.cases import SMALLEST_COUNT
from medstudy.evaluation.comparison import FinishedRun, finished_runs, read_tables, rules_of
from medstudy.evaluation.evaluate import value_text
from medstudy.evaluation.metrics import metric_name
from medstudy.report.privacy import Review
from medstudy.runs import slug

if TYPE_CHECKING:
    import jinja2
    import pandas as pd

TEMPLATES = Path(__file__).parent / "templates"
#: CSS class by verdict.
_KINDS = {"DPO worth it": "good", "DPO harms": "bad", "not valid": "bad"}
#: Words of statistics, as a page says them.
_GLOSS = {"macro-F1": "F1 (mean over classes)", "failed gates": "failed checks", "gates failed": "checks failed"}
_GLOSS |= {"answers of sft_more": "answers of SFT with the same labels", "answers of sft ": "answers of SFT "}
_GLOSS |= {"task x model": "of the single results", "majority baseline": "commonest answer"}
_TRIAGE = ("under_triage", "over_triage")


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
    tables = read_tables(study)
    cells = cells_of(runs, tables)
    write_documents(report, runs, cells, rules_of(study).margin)
    index = report / "index.html"
    index.write_text(_index(study, runs, tables["verdicts.csv"], cells, review), encoding="utf-8")
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
        "gloss": _gloss,
        "first_capital": lambda text: text[:1].upper() + text[1:],
        "kind": lambda verdict: _KINDS.get(verdict, "plain"),
    }
    return made


def page_of(run: FinishedRun) -> str:
    """File name of a run's page."""
    asked = run.parameters
    return f"{asked['task']}-{slug(asked['model'])}-seed{asked['seed']}.html"


def cells_of(runs: list[FinishedRun], tables: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """What the index says of each task and model: verdict, sentence and, an outcome a line, differences and values.

    Under- and over-triage are among the outcomes of triage, whatever a verdict looks at.
    """
    contrasts, metrics = tables["tables/contrasts.csv"], tables["tables/metrics.csv"]
    judged = tables["verdicts.csv"].query("scope == 'cell'").drop_duplicates("name").set_index("name")
    cells = []
    for task, model in dict.fromkeys(run.cell for run in runs):
        one = contrasts[(contrasts["task"] == task) & (contrasts["model"] == model)]
        values = metrics[(metrics["task"] == task) & (metrics["model"] == model)].set_index(["metric", "arm"])
        baselines = _baselines([run for run in runs if run.cell == (task, model)])
        outcomes = []
        for metric in dict.fromkeys(one.loc[one["primary"] | one["metric"].isin(_TRIAGE), "metric"]):
            differences = one[one["metric"] == metric].set_index("contrast").to_dict("index")
            shown = {arm: value_text(cell, 2) for arm, cell in values.loc[metric].to_dict("index").items()}
            found = {"name": metric, "against": {name: _interval(row) for name, row in differences.items()}}
            outcomes.append(found | {"values": shown, "baselines": baselines.get(metric, [])})
        about = {"task": task, "model": model, "outcomes": outcomes}
        cells.append(about | judged.loc[f"{task}, {model}", ["verdict", "sentence"]].to_dict())
    return cells


def _interval(row: dict[str, Any]) -> str:
    numbers = [row[key] for key in ("difference", "low", "high")]
    return "" if any(x != x for x in numbers) else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(x + 0.0 for x in numbers))


def _baselines(runs: list[FinishedRun]) -> dict[str, list[str]]:
    """Outcome -> what each baseline reaches, with its name, means over seeds."""
    saved = [run.saved("baselines") for run in runs if (run.folder / "baselines.json").is_file()]
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for one in saved for name in one):
        for metric in saved[0].get(name, {}):
            values = [one[name][metric]["value"] for one in saved if metric in one.get(name, {})]
            if values and None not in values:
                label = BASELINES[name].label if name in BASELINES else _words(name)
                found.setdefault(metric, []).append(f"{label} {mean(values):.2f}")
    return found


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


def _index(
    study: Path, runs: list[FinishedRun], verdicts: pd.DataFrame, cells: list[dict[str, Any]], review: Review
) -> str:
    said = verdicts.fillna({"verdict": ""}).drop_duplicates(["scope", "name"])
    said = said[said["scope"].isin(("study", "kind"))]
    dates = sorted({run.record["finished"][:10] for run in runs})
    words = f"Differences that DPO makes, with 95 % intervals. {' '.join(said['sentence'])}"
    plan = study / "plan.json"
    return (
        environment()
        .get_template("index.html.j2")
        .render(
            title=f"{study.name}: labels or preferences?",
            study=study.name,
            findings=said.to_dict("records"),
            cells=cells,
            arms=ARMS,
            margin=rules_of(study).margin,
            forest=_inline_svg(study / "figures" / "forest.svg", words),
            scores=_inline_svg(study / "figures" / "study.svg", "Every task, model and arm with 95 % intervals."),
            failed=_failed(runs),
            plan=json.loads(plan.read_text(encoding="utf-8")) if plan.is_file() else None,
            facts=[_facts([run for run in runs if run.cell == cell]) for cell in dict.fromkeys(r.cell for r in runs)],
            runs=runs,
            dates=" to ".join(dict.fromkeys((dates[0], dates[-1]))),
            commits=_listed(map(_commit, runs)),
            cases=len(review.guard.cases),
            smallest=SMALLEST_COUNT,
            kept_back=review.kept_back,
        )
    )


def _failed(runs: list[FinishedRun]) -> list[dict[str, Any]]:
    """Every failed check once, with the runs that it failed in."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        for gate in (gate for gate in run.gates if not gate["passed"]):
            where = f"{_words(run.parameters['task'])}, {run.parameters['model']}, seed {run.parameters['seed']}"
            found.setdefault(gate["gate"], gate | {"runs": []})["runs"].append(where)
    return list(found.values())


def _facts(runs: list[FinishedRun]) -> dict[str, Any]:
    """What a reviewer asks of one task and model: flow of cases, the model, what was chosen, how DPO trained."""
    first, asked = runs[0].record, runs[0].parameters
    tried = {arm: [one for one in first.get("tried", []) if one["arm"] == arm] for arm in TRAINED}
    chosen = (f"{ARMS[arm].label}: {_choice(of)}" for arm, of in tried.items() if of)
    margins = first.get("stages", {}).get("margins", {})
    learnt = [f"{name}: {v['margin']:.2f}, {v['accuracy']:.0%}" for name, v in margins.items() if isinstance(v, dict)]
    arithmetic = first.get("compute_dtype") or first.get("dtype") or "not recorded"
    return {
        "task": asked["task"],
        "model": asked["model"],
        "flow": _flow(runs[0]),
        "weights": f"revision {str(first.get('model_revision') or 'not recorded')[:12]}",
        "arithmetic": f"{first['device']}, {arithmetic}",
        "synthetic": asked["model"].startswith("builtin/"),
        "chosen": "; ".join(chosen) or "fixed beforehand",
        "pairs": f"{first['pairs']}; margin that DPO gained and share of pairs where it did: "
        f"{'; '.join(learnt) or 'not measured'}",
    }


def _choice(tried: list[dict[str, Any]]) -> str:
    """Of one arm: how many settings were tried on how many validation cases, and the one that was chosen."""
    best = next((one for one in tried if one["chosen"]), tried[0])
    settings = ", ".join(f"{_words(name)} {value}" for name, value in best["settings"].items())
    return f"{settings} (of {len(tried)} tried on {best['n']} validation cases)"


def _flow(run: FinishedRun) -> str:
    """How many cases were kept and how they were split; few of a private source are only said to be few."""
    import pandas as pd

    private = run.folder / "private"
    if not all((private / name).is_file() for name in ("cases.parquet", "splits.jsonl")):
        return "not recorded"
    splits = json.loads((private / "splits.jsonl").read_text(encoding="utf-8"))
    kept = pd.read_parquet(private / "cases.parquet", columns=["case_id", "group_id"])

    def count(n: int) -> str:
        return f"< {SMALLEST_COUNT}" if 0 < n < SMALLEST_COUNT and not run.record.get("shareable") else str(n)

    parts = ", ".join(f"{_words(name)} {count(len(of))}" for name, of in splits.items() if isinstance(of, list))
    return f"{count(len(kept))} cases of {count(kept['group_id'].nunique())} groups kept; {parts}"


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


def _gloss(text: str) -> str:
    """A sentence or the name of an outcome in the words of a clinic."""
    said = metric_name(text) if re.fullmatch(r"[a-zA-Z_0-9]+", text) else text
    for word, plain in _GLOSS.items():
        said = said.replace(word, plain)
    return said


def _words(name: str) -> str:
    return name.replace("_", " ")
