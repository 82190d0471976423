"""The command line: `medstudy run | check | …`. Errors: one clear message, exit code 2."""

from __future__ import annotations

import argparse
import signal
import sys
from collections import Counter
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Entry point of the command `medstudy`."""
    # `medstudy status … | head` ends quietly, as other commands do
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    words = sys.argv[1:] if argv is None else argv
    # what follows `--` is Snakemake's; argparse itself would mix it with our own positional arguments
    split = words.index("--") if "--" in words else len(words)
    args = _parser().parse_args(words[:split])
    args.extra = words[split + 1 :]
    from medstudy.batch.study import BatchError
    from medstudy.data.cases import DataError
    from medstudy.params import ParamsError

    try:
        return args.command(args)
    except (BatchError, DataError, ParamsError, OSError) as error:
        from medstudy.batch.machine import remedy

        print(f"medstudy: {error}{remedy(repr(error)) if isinstance(error, OSError) else ''}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="medstudy", description="Is DPO worth it after SFT? Runs a study's notebooks."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = _command(commands, "run", _run, "execute every notebook of a study that is missing or out of date")
    run.add_argument("--jobs", type=_positive, metavar="N", help="notebooks at once (default: by cores, memory, GPUs)")
    run.add_argument("--threads", type=_positive, metavar="N", help="threads of each (default: cores / jobs)")
    run.add_argument(
        "--only", action="append", default=[], metavar="TASK", help="this task (may be given more than once)"
    )
    run.add_argument("--profile", default="default", help="folder in profiles/: default (this machine) or slurm")
    run.epilog = "What follows -- is given to Snakemake, for example: medstudy run params/demo -- --dry-run"
    _command(commands, "check", _check, "validate a study, read its data and say what would run; loads no model")
    _command(commands, "status", _status, "one line a run: ok, running, failed, stopped or not started")
    _command(commands, "compare", _compare, "compute every number again from the predictions; loads no model")
    plan = _command(commands, "plan", _plan, "what a study can show, before anything runs")
    plan.add_argument("--variances", type=Path, help="results of an earlier study (default: those of the demo)")
    plan.add_argument("--freeze", action="store_true", help="write rules and looks, before the test set is read")
    _command(commands, "report", _report, "write the HTML report of a study that has been run")
    text = "write a first card and study for files of your own, and say what was guessed and why"
    card = commands.add_parser("init-card", help=text, description=text)
    card.add_argument("files", nargs="+", type=Path, metavar="FILE")
    card.add_argument("task", help="text_classification, numeric_classification, clinical_reasoning, …")
    card.add_argument("--to", type=Path, metavar="FOLDER", help="default: params/<name of the first file>")
    card.set_defaults(command=_init_card)
    text = "write a copy of an executed notebook without outputs that repeat private cases of this checkout"
    share = commands.add_parser("share", help=text, description=text)
    share.add_argument("notebook", type=Path)
    share.add_argument("target", type=Path, help="the copy to write")
    share.add_argument("--results", type=Path, help="where the runs are (default: the checkout's results)")
    share.set_defaults(command=_share)
    _pairs_parser(commands)
    text = "write the trained model of an arm, adapter and base in one, for use elsewhere"
    model = commands.add_parser("model", help=text, description=text)
    model.add_argument("run", type=Path, help="results/<study>/<model>/<task>/seed<k>")
    model.add_argument("arm", help="sft, sft_more, sft_chosen or dpo")
    model.add_argument("target", type=Path, help="the folder to write")
    model.add_argument("--allow-private", action="store_true", help="also where the cases may not be shown")
    model.set_defaults(command=_model)
    _ratings_parser(commands)
    return parser


def _pairs_parser(commands: argparse._SubParsersAction) -> None:
    text = "write the preference pairs of a run in the form that a trainer elsewhere reads"
    pairs = commands.add_parser("pairs", help=text, description=text)
    pairs.add_argument("run", type=Path, help="results/<study>/<model>/<task>/seed<k>")
    pairs.add_argument("form", help="trl, openai, azure, together, fireworks, gemini or nova")
    pairs.add_argument("target", type=Path, help="the JSON-lines file to write")
    pairs.add_argument("--allow-private", action="store_true", help="also where the cases may not be shown")
    pairs.set_defaults(command=_pairs)


def _ratings_parser(commands: argparse._SubParsersAction) -> None:
    text = "blinded sheets for human ratings of one run, and their way back"
    actions = commands.add_parser("ratings", help=text, description=text).add_subparsers(required=True)
    out = actions.add_parser("export", help="write one blinded sheet a rater into private/ratings")
    out.add_argument("run", help="results/<study>/<model>/<task>/seed<k>")
    out.add_argument("raters", nargs="+", help="a name for each rater's sheet, such as initials")
    out.add_argument("--cases", type=_positive, default=50)
    out.add_argument("--arms", nargs="+", default=[], help="default: all of the run")
    out.set_defaults(command=_export_ratings)
    back = actions.add_parser("import", help="check filled-in sheets and write ratings.json")
    back.add_argument("run")
    back.add_argument("sheets", nargs="+")
    back.set_defaults(command=_import_ratings)


def _command(commands: argparse._SubParsersAction, name: str, action: object, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("study", help="params/<study> or results/<study>")
    parser.set_defaults(command=action)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _run(args: argparse.Namespace) -> int:
    from medstudy.batch import study as batch

    return batch.run(batch.enter(args.study), args.jobs, args.threads, args.only, args.profile, args.extra)


def _check(args: argparse.Namespace) -> int:
    from medstudy.batch import check
    from medstudy.batch import study as batch

    return check.report_study(batch.enter(args.study))


def _init_card(args: argparse.Namespace) -> int:
    from medstudy.data.init_card import init_card

    stem = args.files[0].name.partition(".")[0]
    for line in init_card(
        args.files, args.task, args.to or Path("params", "".join(c if c.isalnum() else "_" for c in stem))
    ):
        print(line)
    return 0


def _status(args: argparse.Namespace) -> int:
    from medstudy.batch import study as batch
    from medstudy.params import load_study

    counts: Counter[str] = Counter()
    for params, state, remark in batch.statuses(load_study(batch.enter(args.study))):
        counts[state] += 1
        print(f"{params.task:<24} {params.model:<24} seed {params.seed:<3} {state:<12} {remark}".rstrip())
    print(", ".join(f"{n} {state}" for state, n in counts.items()))
    return 0


def _compare(args: argparse.Namespace) -> int:
    from medstudy.batch import study as batch
    from medstudy.evaluation import comparison
    from medstudy.report import figures

    study = batch.enter_results(args.study)
    rules = comparison.rules_of(study)
    tables, other = comparison.recompute(study, rules)
    figures.save_study(study, tables, rules.margin)
    found = tables["verdicts.csv"].drop_duplicates(["scope", "name"])
    print("\n".join(f"{row.verdict or row.name}: {row.sentence}" for row in found.itertuples(index=False)))
    print("\n".join(f"came out otherwise: {file}" for file in other) or "all as the notebooks had it")
    return 1 if other else 0


def _plan(args: argparse.Namespace) -> int:
    import pandas as pd

    from medstudy.batch import study as batch
    from medstudy.evaluation import plan
    from medstudy.params import load_study

    given = args.variances.resolve() if args.variances else None
    study = load_study(batch.enter(args.study))
    cases = plan.test_cases(study)
    looks, variances = plan.looks_of(study), plan.earlier_variances(given)
    alpha = plan.POCOCK[len(looks)]
    shown = pd.concat(plan.shows(variances, cases, len(study.models), seeds, alpha) for seeds in looks)
    print(f"{study.name}: DPO against SFT with the same labels, by the variances of {args.variances or 'the demo'}")
    print(shown.to_string(index=False))
    print("half_width: of the 95 % interval; gain: found with 80 % power over both SFT and SFT with the same labels")
    print(
        f"looks at {', '.join(map(str, looks))} trainings a cell, each at the level {alpha:g}; margin {study.margin:g}"
    )
    if args.freeze:
        frozen = plan.freeze(study, batch.results_of(study))
        print(f"frozen {frozen['frozen']}: {batch.results_of(study) / 'plan.json'}, hash {frozen['hash']}")
    return 0


def _report(args: argparse.Namespace) -> int:
    from medstudy.batch import study as batch
    from medstudy.report import pages as report

    try:
        print(report.build(batch.enter_results(args.study)))
    except report.ReportError as error:  # too slow to import for every other command
        raise batch.BatchError(str(error)) from None
    return 0


def _share(args: argparse.Namespace) -> int:
    from medstudy.report import privacy
    from medstudy.runs import project_root

    if not args.notebook.is_file() or args.target.resolve() == args.notebook.resolve():
        print(f"medstudy: {args.notebook} is no notebook, or the copy is to replace it", file=sys.stderr)
        return 2
    results = args.results or project_root(args.notebook.parent) / "results"
    taken, runs, cases = privacy.share(args.notebook, args.target, results)
    if not runs:
        print(f"medstudy: no run in {results}, so nothing to compare with: give --results", file=sys.stderr)
        return 2
    print("".join(f"withheld: {place}\n" for place in taken), end="")
    print(
        f"{args.target}: compared with {cases} private cases of {runs} runs in {results}; "
        "paraphrases and pictures are not seen"
    )
    return 0


def _pairs(args: argparse.Namespace) -> int:
    from medstudy.report.exports import export_pairs

    print(f"{args.target}: {export_pairs(args.run, args.form, args.target, args.allow_private)} pairs")
    return 0


def _model(args: argparse.Namespace) -> int:
    from medstudy.report.export_model import export_model

    export_model(args.run, args.arm, args.target, args.allow_private)
    print(f"{args.target}: loads by AutoModelForCausalLM.from_pretrained, or as a model of vLLM")
    return 0


def _export_ratings(args: argparse.Namespace) -> int:
    from medstudy.report import ratings

    for file in ratings.export(Path(args.run), args.raters, args.cases, args.arms):
        print(file)
    return 0


def _import_ratings(args: argparse.Namespace) -> int:
    from medstudy.report import ratings

    found = ratings.import_sheets(Path(args.run), [Path(sheet) for sheet in args.sheets])
    for arm, cell in found["arms"].items():
        print(f"{arm:<10} mean {cell['mean']:.2f} of {cell['n']} cases")
    for row in found["contrasts"]:
        print(f"{row['contrast']:<14} {row['difference']:+.2f}, Wilcoxon p = {row['p']:.3g}, n = {row['n']}")
    for row in found["agreement"]:
        kappa = "undefined" if row["weighted_kappa"] is None else f"{row['weighted_kappa']:.2f}"
        print(f"{' and '.join(row['raters'])}: weighted kappa {kappa}, n = {row['n']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
