"""The command line: quick to answer, clear when wrong."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mock_study
import pytest
from mock_study import medstudy, write

from medstudy.batch import check, cli
from medstudy.batch import study as batch
from medstudy.params import resolve
from medstudy.studies import load_study

CARD = """
name: fever
title: Made-up notes
task: text_classification
question: Does the patient have a fever?
labels: {label: [no, yes]}
positive: yes
load: {kind: files, format: csv, files: [{path: fever.csv}]}
columns: {text: "{note}", gold: {label: {column: fever}}, missing: {fever: [unknown]}}
"""


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address at which something answers: the tests' models are taken for ids of a hub."""

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *said: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    check._hub_is_reached.cache_clear()
    yield address
    server.shutdown()
    server.server_close()
    check._hub_is_reached.cache_clear()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A study of one task on a small file of its own."""
    root = mock_study.make(tmp_path, seeds=(0, 1))
    rows = [f"note {i} on the ward,{('no', 'yes')[i % 2]}" for i in range(40)] + ["note 99,unknown"]
    (root / "fever.csv").write_text("\n".join(["note,fever", *rows]))
    (root / "fever.yaml").write_text(CARD + "shareable: true\n")
    study = root / "params" / "tiny"
    write(study / "study.yaml", models=["mock/a"], seeds=[0, 1], tasks={"text_classification": {}})
    write(study / "text_classification.yaml", data="fever.yaml", n_train=6, n_prefer=4, n_valid=4, n_test=12)
    write(study / "shared.yaml")
    return root


def test_check_says_what_would_run(root: Path) -> None:
    done = medstudy(root, "check", "params/tiny")
    assert done.returncode == 0, done.stderr
    assert "tiny: 2 runs (1 tasks x 1 models x 2 seeds)" in done.stdout
    assert "41 rows, 40 cases" in done.stdout and "mock/a: train 6, prefer 4, validation 4, test 12" in done.stdout
    assert "taken for a hub id, whose files are not on this machine yet" in done.stdout
    assert "left out: 1 x" in done.stdout
    assert "note: at most 4 pairs give 1 optimiser steps: too few" in done.stdout
    assert "label 'no' is rare: 3 in train" in done.stdout
    assert "runs: 2 not started" in done.stdout
    assert not (root / "results").exists()


def test_check_of_a_private_source_masks_small_counts_and_what_they_follow_from(root: Path, tiny_model: Path) -> None:
    """Rows less cases were the one row that is left out, splits and pairs the patients in them."""
    study = root / "params" / "tiny"
    (root / "fever.yaml").write_text(CARD)
    write(study / "study.yaml", models=[str(tiny_model)], seeds=[0], tasks={"text_classification": {}})
    rows = [f"note {i} on the ward,{('no', 'yes')[i % 2]}" for i in range(80)]
    rows += ["note 1 on the ward,yes", "a note,unknown", f"{'long ' * 600},yes"]
    (root / "fever.csv").write_text("\n".join(["note,fever", *rows]))
    task = study / "text_classification.yaml"
    sizes = {"n_train": 0, "n_prefer": 0, "n_valid": 0, "n_test": 0}
    write(task, data="fever.yaml", **sizes, overlong="exclude", max_new_tokens=16)
    done = medstudy(root, "check", "params/tiny")
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "\n  82 cases\n" in said and "left out: < 11 x no answer for 'label'" in said
    assert "; < 11 cases left out, 0 cut" in said
    # validation cases and those left out are less than 11 together
    assert re.search(r": train \d\d, prefer \d\d, validation < 11, test hidden\n", said), said
    assert "cases that repeat a text: < 11;" in said and "note: pairs and steps: too few" in said
    write(task, data="fever.yaml", **sizes, overlong="truncate", max_new_tokens=16, few_shot_k=0)
    said = medstudy(root, "check", "params/tiny").stdout  # all cases are in a split now
    assert "; 0 cases left out, < 11 cut" in said and ", validation < 11, test hidden\n" in said


def test_check_refuses_what_cannot_run(root: Path) -> None:
    task = root / "params" / "tiny" / "text_classification.yaml"
    write(task, data="fever.yaml", n_test=400)
    assert_refused(root, "text_classification, mock/a: ", "400")
    write(task, data="fever.yml", n_test=4)
    assert_refused(root, "fever.yml")
    write(task, data="fever.yaml", n_test="many")
    assert_refused(root, "n_test = 'many'")


def test_check_lists_all_that_is_wrong_with_every_task_and_model(root: Path, tiny_model: Path) -> None:
    study, bare = root / "params" / "tiny", root / "bare"
    shutil.copytree(tiny_model, bare)
    for file in (bare / "chat_template.jinja", bare / "tokenizer_config.json"):
        if file.suffix == ".jinja":
            file.unlink(missing_ok=True)
        else:
            said = json.loads(file.read_text())
            said.pop("chat_template", None)
            file.write_text(json.dumps(said))
    models = [str(tiny_model), "./nowhere", "models/nowhere", "params/nowhere", str(bare)]
    write(study / "study.yaml", models=models, seeds=[0], tasks={"text_classification": {}, "clinical_triage": {}})
    write(study / "text_classification.yaml", data="fever.yaml", n_test=12, n_valid=400, max_new_tokens=1)
    write(study / "clinical_triage.yaml", data="none.yaml")
    where = "text_classification, "
    assert_refused(root, f"{where}{tiny_model}: ", "max_new_tokens", "n_valid = 400")
    assert_refused(root, *(f"there is no folder {name};" for name in models[1:4]))
    assert_refused(root, "chat template: it has none", "clinical_triage: ", "none.yaml")
    numbers = [line for line in medstudy(root, "check", "params/tiny").stderr.splitlines() if "max_new_tokens" in line]
    assert numbers and "set max_new_tokens = " in numbers[0]


def test_check_refuses_an_arm_that_would_have_no_room(root: Path) -> None:
    """Seen once: check passed, and the notebook stopped at its worked examples."""
    study = root / "params" / "tiny"
    write(study / "study.yaml", models=["builtin/llama"], seeds=[0], tasks={"text_classification": {}})
    sizes = {"n_train": 8, "n_prefer": 8, "n_valid": 8, "n_test": 8}
    write(study / "text_classification.yaml", data="fever.yaml", max_new_tokens=2010, **sizes)
    assert_refused(root, "few_shot_k = 1: beside the longest prompt", "set few_shot_k = 0")


@pytest.mark.parametrize("model", ["builtin/llama", "mock/a"])
def test_check_refuses_what_is_not_installed_once_and_foretells_all_the_same(
    root: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study, find = root / "params" / "tiny", importlib.util.find_spec
    write(study / "study.yaml", models=[model], seeds=[0], tasks={"text_classification": {}, "clinical_triage": {}})
    write(study / "clinical_triage.yaml", data="synthetic_messages", n_train=6, n_prefer=4, n_valid=4, n_test=12)
    write(study / "shared.yaml", quantization="4bit")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    monkeypatch.chdir(root)
    assert cli.main(["check", "params/tiny"]) == 2
    said = capsys.readouterr()
    assert said.err.count("bitsandbytes") == 1 and "pip install -e '.[gpu]'" in said.err
    assert said.out.count("million weights; a run takes about") == 2 * (model == "builtin/llama")


def test_check_names_label_words_that_a_built_in_model_would_have_to_spell(root: Path) -> None:
    """With 'appointment' and 'refill' every arm was unreadable, and nothing had said so."""
    study = root / "params" / "tiny"
    write(study / "study.yaml", models=["builtin/llama"], seeds=[0], tasks={"text_classification": {}})
    sizes = {"n_train": 8, "n_prefer": 8, "n_valid": 8, "n_test": 8}
    for label, said in (("no", False), ("appointment", True)):
        mapped = f"gold: {{label: {{column: fever, map: {{no: {label}, yes: yes}}}}}}"
        own = CARD.replace("[no, yes]", f"[{label}, yes]").replace("gold: {label: {column: fever}}", mapped)
        (root / "fever.yaml").write_text(own)
        write(study / "text_classification.yaml", data="fever.yaml", max_new_tokens=12, **sizes)
        told = medstudy(root, "check", "params/tiny")
        assert ("knows the demo's words, not 'appointment', and" in told.stdout) == said, told.stderr


def test_check_asks_a_hub_that_is_not_reached_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client asked six times in 23 seconds, for each data set anew."""
    study = root / "params" / "tiny"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(root / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    cards = {"text_classification": "medical_abstracts", "clinical_reasoning": "medqa"}
    write(study / "study.yaml", models=["mock/a"], seeds=[0], tasks=dict.fromkeys(cards, {}))
    for task, card in cards.items():
        write(study / f"{task}.yaml", data=card)
    done = medstudy(root, "check", "params/tiny")
    assert done.returncode == 2 and "Retrying" not in done.stderr
    assert done.stderr.count("http://127.0.0.1:9 is not reached") == 1
    assert all(f"medstudy: {task}: hub data set '" in done.stderr for task in cards)
    # a fault of the data hides none of the model, and what cannot be fetched is one
    assert done.stderr.count("model = 'mock/a' is not on this machine, and the hub is not reached") == 1


def test_check_lists_what_is_not_installed_and_no_folder_beside_a_fault_of_the_data(root: Path) -> None:
    study = root / "params" / "tiny"
    write(study / "study.yaml", models=["models/Llama-3-8B"], seeds=[0], tasks={"text_classification": {}})
    write(study / "shared.yaml", quantization="4bit")
    missing = ["there is no folder models/Llama-3-8B"]
    missing += ["quantization = '4bit' needs bitsandbytes"] * (importlib.util.find_spec("bitsandbytes") is None)
    assert_refused(root, *missing)
    assert "taken for a hub id" not in medstudy(root, "check", "params/tiny").stdout
    (root / "fever.csv").unlink()
    assert_refused(root, *missing, "fever.csv")


def test_check_refuses_a_candidate_that_is_out_of_range(root: Path) -> None:
    tries = {arm: [{f"{arm}_learning_rate": 2.0}] for arm in ("sft_more", "sft_chosen", "dpo")}
    write(root / "params" / "tiny" / "shared.yaml", candidates=tries)
    assert_refused(root, "candidates of sft_more: sft_more_learning_rate = 2.0")


def test_check_names_the_cluster_where_no_gpu_is_seen(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = {"text_classification": {"gpu": 1}}
    write(root / "params" / "tiny" / "study.yaml", models=["mock/a"], seeds=[0], tasks=tasks)
    for gpus, words in (("", " --profile slurm -- --dry-run"), ("0", "tiny -- --dry-run")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
        assert medstudy(root, "check", "params/tiny").stdout.splitlines()[-1].endswith(words)


def test_kept_results_are_not_taken_for_those_of_the_study_of_their_name(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`compare docs/public` looked into results/public, as there is a params/public."""
    run = root / "docs" / "tiny" / "m" / "text_classification" / "seed0" / "run.json"
    run.parent.mkdir(parents=True)
    run.write_text("{}")
    monkeypatch.chdir(root)
    assert batch.enter_results("docs/tiny") == Path("docs/tiny")
    assert batch.enter_results("params/tiny") == Path("results/tiny")
    run.unlink()  # and without a finished run it wrote into results/tiny
    with pytest.raises(batch.BatchError, match="docs/tiny holds no finished run"):
        batch.enter_results("docs/tiny")


def test_plan_says_why_one_seed_finds_nothing(root: Path) -> None:
    study = root / "params" / "tiny" / "study.yaml"
    for seeds, nothing in (([0], True), ([0, 1], False)):
        write(study, models=["mock/a"], seeds=seeds, tasks={"text_classification": {}})
        said = medstudy(root, "plan", "params/tiny").stdout
        assert "NaN" not in said and ("gain -: of one training a cell" in said) == nothing


def assert_refused(root: Path, *words: str) -> None:
    done = medstudy(root, "check", "params/tiny")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_status_is_a_line_a_run(root: Path) -> None:
    runs = root / "results" / "tiny" / "mock-a" / "text_classification"
    for seed, record in enumerate(({"status": "ok"}, {"status": "failed", "message": "cell 3: disk full"})):
        (runs / f"seed{seed}").mkdir(parents=True)
        (runs / f"seed{seed}" / "run.json").write_text(json.dumps(record))
    lines = medstudy(root, "status", "results/tiny").stdout.splitlines()
    assert [line.split()[4] for line in lines[:2]] == ["ok", "failed"]
    assert lines[1].endswith("cell 3: disk full")
    assert lines[2] == "1 ok, 1 failed"
    gates = [{"gate": name, "passed": name == "a"} for name in "abc"]
    (runs / "seed0" / "gates.json").write_text(json.dumps(gates))
    assert (
        medstudy(root, "status", "params/tiny")
        .stdout.splitlines()[0]
        .endswith(" ok               2 gates failed: b, c")
    )
    (runs / "seed0" / "run.json").unlink()
    (runs / "seed0" / "status.json").write_text('{"stage": "sft"}')
    assert medstudy(root, "status", "params/tiny").stdout.splitlines()[0].split()[4:] == ["stopped", "sft"]


def test_unknown_profile_or_number_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        "no profile 'cloud' (allowed: default, slurm)"
        in medstudy(root, "run", "params/tiny", "--profile", "cloud").stderr
    )
    with pytest.raises(SystemExit):
        cli.main(["run", "params/tiny", "--jobs", "0"])
    assert "not a whole number above 0" in capsys.readouterr().err


def test_a_study_elsewhere_may_not_share_its_results_with_one_of_the_checkout(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "tiny"
    shutil.copytree(root / "params" / "tiny", other)
    done = medstudy(root, "check", str(other))
    assert done.returncode == 2
    assert "would share results/tiny: give one another name" in done.stderr


def test_the_documented_study_of_a_large_model_is_one(tmp_path: Path) -> None:
    shutil.copytree(mock_study.REPOSITORY / "params" / "paper", tmp_path / "llama3")
    shared = tmp_path / "llama3" / "shared.yaml"
    shared.write_text(shared.read_text().replace("study: paper", "study: llama3"))
    page = (mock_study.REPOSITORY / "docs" / "running.md").read_text()
    (tmp_path / "llama3" / "study.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    assert {run.model for run in load_study(tmp_path / "llama3").runs()} == {"models/Llama-3-8B-Instruct"}


def test_a_real_model_with_the_rates_of_the_demos_is_told() -> None:
    """A large model of one's own would have been trained at 3e-3 and nobody had said so."""
    for model, given, told in (("a/b", {}, 4), ("a/b", {"sft_learning_rate": 1e-4}, 3), ("builtin/llama", {}, 0)):
        run = resolve({"task": "clinical_triage", "model": model} | given)
        assert " ".join(check._rates_of_the_demo(run)).count("_learning_rate = ") == told
    assert not [*check._rates_of_the_demo(load_study("params/public").run("clinical_triage", "a/b", 0))]
