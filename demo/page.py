"""A study's page in docs/, and its figure, as its results say.

`python -m demo.page` after `medstudy run params/demo`; `python -m demo.page docs/public` from the kept predictions.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medstudy.arms import ARMS, BASELINES
from medstudy.evaluation.views import told_once
from medstudy.params import project_root

if TYPE_CHECKING:
    import pandas as pd

#: Half-widths of the interval of DPO - SFT with the same labels that the demo was designed for.
FORESEEN = {"study": 0.02, "task": 0.05}
_HEAD = """# What the {name} {kind}gave

*Written by `python -m demo.page` from {study}/verdicts.csv: {n} runs of version
{commit}, {date}, {minutes:.0f} minutes of computing on {threads} thread(s) a run.
Another machine gives slightly other numbers; docs/controls.md says how often a verdict errs.
{limit}*
"""
#: What each page is no evidence of.
_LIMITS = {
    "demo": "The models have 2 million parameters, the cases are synthetic: this is no evidence about a clinic.",
    "public": "The model has 135 million parameters, a fiftieth of those of the published study.",
}


def page(verdicts: pd.DataFrame, records: list[dict[str, Any]], study: str) -> str:
    """The page in Markdown.

    Args:
        verdicts: rows of verdicts.csv.
        records: run.json of every run.
        study: its folder, as the page names it.
    """
    seconds = sum(value or 0 for record in records for value in record["seconds"].values())
    commits = sorted({(record.get("git_commit") or "unknown")[:7] for record in records})
    dates = sorted({record["finished"][:10] for record in records})
    name = study.rpartition("/")[2]
    facts = {"name": name, "kind": "" if name == "demo" else "study ", "limit": _LIMITS.get(name, "")}
    facts |= {"n": len(records), "commit": ", ".join(commits)}
    facts["date"] = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    threads = records[0].get("threads", "?")
    parts = [_HEAD.format(study=study, minutes=seconds / 60, threads=threads, **facts)]
    said = told_once(verdicts).drop_duplicates(["scope", "name"])
    for scope, title in (
        ("study", "The study"),
        ("kind", "Kinds of task"),
        ("task", "Tasks"),
        ("cell", "Task x model"),
    ):
        lines = [
            f"- **{row.verdict or 'difference'}.** {row.sentence}" for row in said[said["scope"] == scope].itertuples()
        ]
        parts += [f"## {title}\n", *lines, ""] if lines else []
    parts.append(f"![Differences with 95 % intervals]({name}.svg)\n")
    return "\n".join([*parts, _precision(verdicts)] if name == "demo" else parts)


def _values(metrics: pd.DataFrame, primary: pd.DataFrame) -> str:
    """A line a task and outcome, a column an arm or baseline."""
    rows = metrics.merge(primary[["task", "metric"]].drop_duplicates())
    wide = rows.pivot_table("value", ["task", "metric"], "arm", sort=False)
    arms = [arm for arm in (*ARMS, *BASELINES) if arm in wide]
    lines = ["## Values\n", f"| task | outcome | {' | '.join(arms)} |", "|---|---|" + "---|" * len(arms)]
    for (task, metric), cells in wide.iterrows():
        texts = ["" if cells[arm] != cells[arm] else f"{cells[arm]:.3f}" for arm in arms]
        lines.append(f"| {task.replace('_', ' ')} | {metric} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def _precision(verdicts: pd.DataFrame) -> str:
    """What half-widths were reached, beside those that were foreseen."""
    rows = verdicts[verdicts["contrast"] == "dpo-sft_more"]
    lines = ["## How exact this is\n", "| scope | outcome | half-width | foreseen |", "|---|---|---|---|"]
    for row in rows[rows["scope"].isin(FORESEEN)].itertuples(index=False):
        half = (row.high - row.low) / 2
        foreseen = FORESEEN[row.scope]
        missed = "" if half <= foreseen else ", not reached"
        lines.append(f"| {row.name} | {row.outcome} | {half:.3f} | {foreseen:g}{missed} |")
    return "\n".join(lines) + "\n"


def main(results: Path, docs: Path) -> None:
    """Write both files."""
    import pandas as pd

    from medstudy.report.figures import style
    from medstudy.report.forest import forest_figure

    verdicts = pd.read_csv(results / "verdicts.csv", keep_default_na=False, na_values=["nan"])
    numbers = ["difference", "low", "high", "p"]
    verdicts[numbers] = verdicts[numbers].apply(pd.to_numeric, errors="coerce")
    records = [json.loads(file.read_text(encoding="utf-8")) for file in results.glob("*/*/seed*/run.json")]
    text = page(verdicts, records, f"{results.parent.name}/{results.name}")
    if (results / "in_short.md").is_file():  # what people say of it, after the head
        said = (results / "in_short.md").read_text(encoding="utf-8")
        text = text.replace("\n## ", f"\n{said}\n## ", 1)
    if (results / "tables" / "metrics.csv").is_file():
        metrics, contrasts = (pd.read_csv(results / "tables" / f"{name}.csv") for name in ("metrics", "contrasts"))
        text += "\n" + _values(metrics, contrasts[contrasts["primary"]])
    (docs / f"{results.name}.md").write_text(text, encoding="utf-8")
    with style():  # the same ids for the same figure
        forest_figure(verdicts).savefig(docs / f"{results.name}.svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    root = project_root()
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else root / "results" / "demo", root / "docs")
