"""The command line: `medstudy run | check | …`. Errors: one clear message, exit code 2."""

import argparse
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from medstudy.batch import study as batch
from medstudy.batch.engine import BatchError
from medstudy.data.cases import DataError
from medstudy.params import ParamsError
from medstudy.runs import project_root
from medstudy.studies import load_study

#: Arguments that are given by place: what they are, and their type.
ARGUMENTS = {
    "study": ("params/<study> or results/<study>", str),
    "notebook": ("an executed notebook", Path),
    "run": ("results/<study>/<model>/<task>/seed<k>", Path),
    "target": ("the file to write", Path),
}


def main(argv: list[str] | None = None) -> int:
    """Entry point of the command `medstudy`."""
    # `medstudy status … | head` ends quietly, as other commands do
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    words = [*(sys.argv[1:] if argv is None else argv), "--"]
    # what follows `--` is Snakemake's; argparse itself would mix it with our own positional arguments
    split = words.index("--")
    args = _parser().parse_args(words[:split])
    args.extra = words[split + 1 : -1]
    try:
        return args.command(args) or 0
    except (BatchError, DataError, ParamsError, OSError) as error:
        print(f"medstudy: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    text = "Is DPO worth it after SFT? Runs a study's notebooks."
    parser = argparse.ArgumentParser(prog="medstudy", description=text)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = _add(commands, "run study", _run, "execute every notebook of a study that is missing or out of date")
    run.add_argument("--jobs", type=_positive, metavar="N", help="notebooks at once (default: by cores, memory, GPUs)")
    run.add_argument("--threads", type=_positive, metavar="N", help="threads of each (default: cores / jobs)")
    run.add_argument("--profile", default="default", help="folder in profiles/: default (this machine) or slurm")
    run.epilog = "What follows -- is given to Snakemake, for example -- --dry-run, or -- --until TASK"
    _add(commands, "check study", _check, "validate a study, read its data and say what a run takes; loads no model")
    _add(commands, "status study", _status, "one line a run: its state, and its stage or what is wrong")
    _add(commands, "compare study", _compare, "compute every number again from the predictions; loads no model")
    plan = _add(commands, "plan study", _plan, "what a study can show, before anything runs")
    plan.add_argument("--variances", type=Path, help="results of an earlier study (default: those of the demo)")
    plan.add_argument("--freeze", action="store_true", help="write rules and looks, before the test set is read")
    _add(commands, "report study", _report, "write the HTML report of a study that has been run")
    text = "write a first card and study for files of your own, and say what was guessed and why"
    card = _add(commands, "init-card", _init_card, text)
    card.add_argument("files", nargs="+", type=Path, metavar="FILE")
    card.add_argument("task", help="text_classification, numeric_classification, clinical_reasoning, …")
    card.add_argument("--to", type=Path, metavar="FOLDER", help="default: params/<name of the first file>")
    _add_exports(commands)
    return parser


def _add_exports(commands: argparse._SubParsersAction) -> None:
    text = "write a copy of an executed notebook without outputs that repeat private cases of this checkout"
    share = _add(commands, "share notebook target", _share, text)
    share.add_argument("--results", type=Path, help="where the runs are (default: the checkout's results)")
    text = "blinded sheets for human ratings of one run, and their way back"
    actions = commands.add_parser("ratings", help=text, description=text).add_subparsers(required=True)
    out = _add(actions, "export run", _export_ratings, "write one blinded sheet a rater into private/ratings")
    out.add_argument("raters", nargs="+", help="a name for each rater's sheet, such as initials")
    out.add_argument("--cases", type=_positive, default=50)
    out.add_argument("--arms", nargs="+", default=[], help="default: all of the run")
    back = _add(actions, "import run", _import_ratings, "check filled-in sheets and write ratings.json")
    back.add_argument("sheets", nargs="+", type=Path)


def _add(commands: argparse._SubParsersAction, words: str, action: Callable, text: str) -> argparse.ArgumentParser:
    """Add a command: its name and what is given by place, what it calls and what it is for."""
    name, *places = words.split()
    parser = commands.add_parser(name, help=text, description=text)
    for place in places:
        parser.add_argument(place, help=ARGUMENTS[place][0], type=ARGUMENTS[place][1])
    parser.set_defaults(command=action)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _run(args: argparse.Namespace) -> int:
    return batch.run(batch.enter(args.study), args.jobs, args.threads, args.profile, args.extra)


def _check(args: argparse.Namespace) -> int:
    from medstudy.batch import check

    return check.report_study(batch.enter(args.study))


def _init_card(args: argparse.Namespace) -> None:
    from medstudy.data.init_card import init_card

    stem = args.files[0].name.partition(".")[0]
    to = args.to or Path("params", "".join(c if c.isalnum() else "_" for c in stem))
    print("\n".join(init_card(args.files, args.task, to)))


def _status(args: argparse.Namespace) -> None:
    counts: Counter[str] = Counter()
    for params, state, remark in batch.statuses(load_study(batch.enter(args.study))):
        counts[state] += 1
        print(f"{params.task:<24} {params.model:<24} seed {params.seed:<3} {state:<16} {remark}".rstrip())
    print(", ".join(f"{n} {state}" for state, n in counts.items()))


def _compare(args: argparse.Namespace) -> int:
    from medstudy.evaluation import comparison, views
    from medstudy.report import forest

    study = batch.enter_results(args.study)
    tables, other = comparison.recompute(study)
    forest.save_study(study, tables, comparison.rules_of(study).margin)
    found = views.told_once(tables["verdicts.csv"]).drop_duplicates(["scope", "name"])
    print("\n".join(f"{row.verdict or row.name}: {row.sentence}" for row in found.itertuples(index=False)))
    print("\n".join(f"came out otherwise: {file}" for file in other) or "all as the notebooks had it")
    return 1 if other else 0


def _plan(args: argparse.Namespace) -> None:
    import pandas as pd

    from medstudy.evaluation import plan

    given = args.variances.resolve() if args.variances else None
    study = load_study(batch.enter(args.study))
    cases = plan.test_cases(study)
    looks, variances = study.all_looks, plan.earlier_variances(given)
    alpha = plan.POCOCK[len(looks)]
    shown = pd.concat(plan.shows(variances, cases, len(study.models), seeds, alpha) for seeds in looks)
    # what one task, or one model, would say again
    again = ["study", "kind"] * (len(study.tasks) == 1) + ["cell"] * (len(study.models) == 1)
    shown = shown[~shown["scope"].isin(again)]
    print(f"{study.name}: DPO against SFT with the same labels, by the variances of {args.variances or 'the demo'}")
    print(shown.to_string(index=False, na_rep="-"))
    print("half_width: of the 95 % interval; gain: found with 80 % power over both SFT and SFT with the same labels")
    if shown["gain"].isna().any():
        print("gain -: of one training a cell nothing can be found, as it does not show how far trainings differ")
    numbers = ", ".join(map(str, looks))
    level = f"each at the level {alpha:g}" + " once the plan is frozen (--freeze)" * (len(looks) > 1)
    print(f"looks at {numbers} trainings a cell, {level}; margin {study.margin:g}")
    if args.freeze:
        frozen = plan.freeze(study, batch.results_of(study))
        print(f"frozen {frozen['frozen']}: {batch.results_of(study) / 'plan.json'}, hash {frozen['hash']}")


def _report(args: argparse.Namespace) -> None:
    from medstudy.report import pages as report

    print(report.build(batch.enter_results(args.study)))


def _share(args: argparse.Namespace) -> None:
    from medstudy.report import privacy

    if not args.notebook.is_file() or args.target.resolve() == args.notebook.resolve():
        raise DataError(f"{args.notebook} is no notebook, or the copy is to replace it")
    results = args.results or project_root(args.notebook.parent) / "results"
    taken, runs, cases = privacy.share(args.notebook, args.target, results)
    print(*taken, f"{args.target}: compared with {cases} private cases of {runs} runs in {results}", sep="\n", end="; ")
    print("paraphrases and pictures are not seen")


def _export_ratings(args: argparse.Namespace) -> None:
    from medstudy.report import ratings

    print(*ratings.export(args.run, args.raters, args.cases, args.arms), sep="\n")


def _import_ratings(args: argparse.Namespace) -> None:
    from medstudy.report import ratings

    found = ratings.import_sheets(args.run, args.sheets)
    for arm, cell in found["arms"].items():
        print(f"{arm:<10} mean {cell['mean']:.2f} of {cell['n']} cases")
    for row in found["contrasts"]:
        print(f"{row['contrast']:<14} {row['difference']:+.2f}, Wilcoxon p = {row['p']:.3g}, n = {row['n']}")
    for row in found["agreement"]:
        kappa = "undefined" if row["weighted_kappa"] is None else f"{row['weighted_kappa']:.2f}"
        print(f"{' and '.join(row['raters'])}: weighted kappa {kappa}, n = {row['n']}")


if __name__ == "__main__":
    sys.exit(main())
