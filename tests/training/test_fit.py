"""A real SFT and a real DPO of a tiny model: something moved, the reference is right, every gate can fail."""

from __future__ import annotations

import copy
import dataclasses
import math
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from huggingface_hub.utils import _telemetry
from safetensors.torch import load_file
from trl import DPOTrainer, SFTTrainer

from medstudy.data.card import DataCard
from medstudy.data.cases import Case, DataError
from medstudy.data.splits import Splits
from medstudy.params import RunParams
from medstudy.runs import Run, Stage
from medstudy.tasks import get_task
from medstudy.tasks.base import Task
from medstudy.training import checks
from medstudy.training.arguments import arguments_table, control_config, dpo_config, lora_config, sft_config
from medstudy.training.chat import Chat, load_chat
from medstudy.training.decoding import ROUNDING, batches
from medstudy.training.fit import beside, fit, training_log
from medstudy.training.generation import (
    Decoding,
    answer_cases,
    changed_alone,
    decode,
    reload_difference,
    sample_cases,
)
from medstudy.training.models import load_model
from medstudy.training.preferences import Pair, audit_pairs, make_pairs
from medstudy.training.prompts import fit_context, sft_row, token_table, worked_examples

Trained = tuple[Run, Stage, Stage]


def sft_stage(run: Run, card: DataCard, cases: list[Case], trainer: Any = SFTTrainer) -> Stage:
    rows = [sft_row(get_task("text_classification", card), case) for case in cases]
    return fit(run, "sft", trainer, sft_config(run.params, run), rows, start=lora_config(run.params))


def pairs(card: DataCard, cases: list[Case]) -> list[Pair]:
    """The right label against the other."""
    task, other = get_task("text_classification", card), {"yes": "no", "no": "yes"}
    sides = [(case, case.gold["label"]) for case in cases]
    return [Pair(c.case_id, c.group_id, task.messages(c), said, other[said], "gold") for c, said in sides]


def test_a_training_asks_no_host(
    params: RunParams, card: DataCard, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def lookup(host: str, *others: Any, **more: Any) -> None:
        asked.append(host)
        raise OSError("no network")

    monkeypatch.delenv("CI", raising=False)  # where it is set, TRL sends nothing
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    run = Run(params)
    dpo_stage(run, card, cases[:2], sft_stage(run, card, cases[:2]))
    _telemetry._TELEMETRY_QUEUE.join()  # it is sent by a thread of its own
    assert asked == []


def dpo_stage(run: Run, card: DataCard, cases: list[Case], sft: Stage, trainer: Any = DPOTrainer) -> Stage:
    rows = [pair.row() for pair in pairs(card, cases)]
    return fit(run, "dpo", trainer, dpo_config(run.params, run), rows, start=sft)


def spoilt(kind: type, spoil: Callable[[Any], Any]) -> type:
    """A trainer in which something is changed before it trains."""

    class Spoilt(kind):
        def __init__(self, *args: Any, **given: Any) -> None:
            super().__init__(*args, **given)
            spoil(self)

    return Spoilt


@pytest.fixture
def task(card: DataCard) -> Task:
    return get_task("text_classification", card)


@pytest.fixture
def trained(params: RunParams, card: DataCard, cases: list[Case]) -> tuple[Run, Stage, Stage]:
    sft = sft_stage(run := Run(params), card, cases)
    return run, sft, dpo_stage(run, card, cases, sft)


@pytest.fixture
def asked(params: RunParams, task: Task, cases: list[Case]) -> tuple[Any, Chat, list[Any]]:
    """The model before any training, its chat and the prompts of all cases."""
    return load_model(params), load_chat(params), [task.messages(case) for case in cases]


def test_dpo_goes_on_from_sft_and_its_reference_is_the_sft_model(trained: Trained) -> None:
    run, sft, dpo = trained
    assert dpo.facts["first_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert dpo.facts["first_log_ratio"] < 1e-4
    for arm, stage in (("sft", sft), ("dpo", dpo)):
        log = pd.read_csv(run.folder / "training" / f"{arm}.csv")
        assert log["loss"].notna().all()
        assert len(log) == stage.facts["steps"] == 4
        assert log.equals(training_log(stage))
    assert {"rewards/margins", "logps/chosen", "logps/rejected"} <= set(training_log(dpo).columns)
    assert not (dpo.folder / "adapter" / "ref").exists()


def test_arguments_are_those_of_the_parameters_and_shown_with_them(
    params: RunParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", property(lambda self: 4))
    params = params.model_copy(update={"dpo_beta": 0.7, "dpo_learning_rate": 1e-4, "gradient_accumulation": 3})
    args = dpo_config(params, Run(params))
    assert args._n_gpu == 1  # a kernel never spreads over several GPUs
    args.lr_scheduler_type = "cosine"
    shown = arguments_table(args, lora_config(params)).reset_index("argument").set_index("argument")
    assert shown.loc["beta", ["value", "default", "parameter"]].tolist() == [0.7, 0.1, "dpo_beta"]
    expected = {"gradient_accumulation_steps": 3, "r": 2, "lora_alpha": 4, "lr_scheduler_type": "cosine"}
    assert shown["value"][list(expected)].to_dict() == expected
    assert {"loss_type", "learning_rate", "num_train_epochs", "per_device_train_batch_size", "bf16"} <= set(shown.index)


def test_every_trial_of_the_same_lora_is_found_again(params: RunParams, card: DataCard, cases: list[Case]) -> None:
    """PEFT writes the names of layers into the config that it is given: the second trial had another key each start."""
    task = get_task("text_classification", card)
    rows, keys = [sft_row(task, case) for case in cases], []
    for _ in range(2):
        run, lora = Run(params), lora_config(params)
        tries = [sft_config(params.model_copy(update={"sft_learning_rate": rate}), run) for rate in (1e-3, 2e-3)]
        keys.append([fit(run, "sft", SFTTrainer, args, rows, start=lora).key for args in tries])
    assert keys[0] == keys[1] and keys[0][0] != keys[0][1]


@pytest.mark.parametrize(("rows", "of_dpo", "steps"), [(8, 7, 7), (24, 7, 12)])
def test_a_control_trains_for_as_many_steps_as_dpo_or_more(
    rows: int, of_dpo: int, steps: int, params: RunParams
) -> None:
    params = params.model_copy(update={"sft_more_learning_rate": 5e-4, "sft_more_epochs": 1})
    args = control_config(params, Run(params), "sft_more", rows, of_dpo)
    assert (args.max_steps, args.learning_rate) == (steps, 5e-4)


def test_another_trainer_or_value_trains_anew_and_the_earlier_one_is_found(
    trained: Trained, card: DataCard, cases: list[Case]
) -> None:
    run, sft, dpo = trained
    saved = (dpo.folder / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns

    class Doubled(DPOTrainer):
        def compute_loss(self, *args: Any, **given: Any) -> Any:
            return 2 * super().compute_loss(*args, **given)

    own = dpo_stage(Run(run.params), card, cases, sft, Doubled)
    assert own.key != dpo.key and own.facts["trainer"].endswith("Doubled")
    assert training_log(own)["loss"][0] == pytest.approx(2 * training_log(dpo)["loss"][0], rel=1e-4)
    other = dpo_stage(Run(run.params.model_copy(update={"dpo_beta": 0.5})), card, cases, sft)
    assert other.folder != dpo.folder and other.facts["arguments"]["beta"] == "0.5"
    assert training_log(other)["rewards/margins"].tolist() != training_log(dpo)["rewards/margins"].tolist()
    back = dpo_stage(Run(run.params), card, cases, sft)
    assert (back.folder / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == saved


def test_a_rounded_adapter_is_the_reference_again(params: RunParams, card: DataCard, cases: list[Case]) -> None:
    """TRL rounds it on quantized weights, where it would lose most of a small step."""

    def rounded(trainer: Any) -> None:
        for weight in (w for w in trainer.model.parameters() if w.requires_grad):
            weight.data = weight.data.to(torch.bfloat16)

    run = Run(params)
    dpo = dpo_stage(run, card, cases, sft_stage(run, card, cases), spoilt(DPOTrainer, rounded))
    assert (dpo.facts["first_log_ratio"], dpo.facts["frozen_changed"], dpo.facts["unmoved"]) == (0, 0, [])
    saved = load_file(dpo.folder / "adapter" / "adapter_model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_4bit_weights_pass_the_same_gates(params: RunParams, card: DataCard, cases: list[Case], dtype: str) -> None:
    pytest.importorskip("bitsandbytes", reason="pip install -e '.[gpu]'")
    change = {"model": "builtin/llama", "quantization": "4bit", "dtype": dtype}
    run = Run(params.model_copy(update=change))
    sft = sft_stage(run, card, cases)
    model = load_model(run.params, sft.folder / "adapter")
    assert any(type(module).__name__ == "Linear4bit" for module in model.modules())
    assert reload_difference(model, sft.folder) < ROUNDING[1]
    dpo = dpo_stage(run, card, cases, sft)
    assert dpo.facts["first_log_ratio"] <= checks.LOG_RATIO_TOLERANCE
    assert all(stage.facts["frozen_changed"] == 0 and stage.facts["unmoved"] == [] for stage in (sft, dpo))


def test_the_saved_adapter_merged_or_not_answers_as_the_trained_model_did(
    trained: Trained, task: Task, cases: list[Case]
) -> None:
    run, sft, _ = trained
    answers = answer_cases(run, "sft", task, cases, sft)
    assert answer_cases(Run(run.params), "sft", task, cases, sft) == answers  # read back by a second start
    apart, merged = (load_model(run.params, sft.folder / "adapter", merged=merged) for merged in (False, True))
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    assert reload_difference(apart, sft.folder) <= ROUNDING[1]
    assert reload_difference(merged, sft.folder) == pytest.approx(reload_difference(apart, sft.folder), abs=1e-4)
    in_bf16 = run.params.model_copy(update={"dtype": "bfloat16"})
    kept = load_model(in_bf16, sft.folder / "adapter", merged=True)
    assert any("lora_" in name for name, _ in kept.named_parameters())


def test_generation_refuses_a_model_in_training_mode(params: RunParams) -> None:
    with pytest.raises(RuntimeError, match="training mode"):
        decode(load_model(params, trainable=True), load_chat(params), [[]], Decoding(2, 1))


def test_long_prompts_are_answered_a_few_at_a_time() -> None:
    """A set of long notes took as much memory as rows x longest squared: the largest batch is bounded in tokens."""
    lengths, how = [9000, 40, 2000, 41, 40_000, 2100], Decoding(8, 16, samples=4)
    assert list(batches(lengths, how)) == [[1, 3, 2], [5], [0], [4]]
    assert list(batches([30] * 9, how)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert list(batches([], how)) == []


def test_batches_padding_and_shared_prompts_change_no_answer(asked: tuple[Any, Chat, list[Any]]) -> None:
    """Against greedy decoding as transformers does it, a prompt at a time, without padding."""
    model, chat, prompts = asked
    alone = []
    for ids in (torch.tensor([chat.prompt(messages)]) for messages in prompts):
        alone.append(model.generate(input_ids=ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :].tolist())
    model.generation_config.do_sample, model.generation_config.repetition_penalty = True, 5.0  # is not obeyed
    for batch_size, labels in ((1, []), (8, []), (3, ["yes", "no"])):
        made = decode(model, chat, prompts, Decoding(6, batch_size), labels)
        assert [ids for (ids,) in made.ids] == alone
    near_greedy = decode(model, chat, prompts, Decoding(6, 8, samples=4, temperature=1e-4))
    assert [set(texts) for texts in near_greedy.texts] == [set(texts) for texts in made.texts]
    assert changed_alone(model, chat, prompts, alone) == 0
    other = [[*ids[:-1], ids[-1] + 1] for ids in alone[:3]] + alone[3:]
    assert changed_alone(model, chat, prompts, other) == 3


def test_log_probabilities_are_of_the_labels_alone_and_the_same(
    params: RunParams, card: DataCard, cases: list[Case], tmp_path: Path
) -> None:
    """A training by TRL as it is, which scores every position, has the same losses to the last digit."""
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    ways, losses = [utils._use_triton, chunked_logprob._use_triton], []
    for way in ways:
        run = Run(params.model_copy(update={"results": str(tmp_path / str(len(losses)))}))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("medstudy.training.measure.score_labels_only", lambda: None)
            patched.setattr(utils, "_use_triton", way)
            losses.append(training_log(sft_stage(run, card, cases))["loss"].tolist())
    assert losses[0] == losses[1]


def log_p(model: Any, prompt: list[int], answer: list[int]) -> float:
    """The plain way: one sequence, no cache and no padding."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return float(logits.gather(1, torch.tensor(answer)[:, None]).sum())


def test_label_probabilities_are_those_of_the_whole_sequences(asked: tuple[Any, Chat, list[Any]]) -> None:
    model, chat, prompts = asked
    labels = ["yes", "no", "not at all"]
    each = [[log_p(model, *chat.row(messages, label)) for label in labels] for messages in prompts]
    expected = torch.tensor(each).softmax(1).numpy()
    for batch_size in (1, 4, 64):
        found = decode(model, chat, prompts, Decoding(2, batch_size), labels).probabilities
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("arm", ["sft", "dpo"])
def test_a_killed_training_goes_on_and_ends_as_if_nothing_had_been(
    arm: str, params: RunParams, card: DataCard, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = params.model_copy(update={"sft_epochs": 3, "dpo_epochs": 3})
    cases = [dataclasses.replace(case, text="dysuria " * (i + 1)) for i, case in enumerate(cases)]
    sft = sft_stage(Run(params.model_copy(update={"results": str(tmp_path / "sft")})), card, cases)

    def trained(results: str) -> Stage:
        run = Run(params.model_copy(update={"results": str(tmp_path / results)}))
        return sft_stage(run, card, cases) if arm == "sft" else dpo_stage(run, card, cases, sft)

    whole = trained("whole")
    monkeypatch.setattr("medstudy.training.fit.CHECKPOINT_MINUTES", 0.0)

    def killed_in_step_8(stage: Stage, minutes: float) -> Any:
        def on_step_begin(args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == 7:
                raise KeyboardInterrupt

        callback = beside(stage, minutes)
        callback.on_step_begin = on_step_begin
        return callback

    with monkeypatch.context() as patched:
        patched.setattr("medstudy.training.fit.beside", killed_in_step_8)
        with pytest.raises(KeyboardInterrupt):
            trained("killed")
    [kept] = (tmp_path / "killed").rglob("checkpoint-*")
    (kept.parent / "checkpoint-9").mkdir()  # half-written: its state is missing
    again = trained("killed")
    assert [stage.facts["resumed_at_step"] for stage in (again, whole)] == [7, 0]
    assert not kept.parent.exists()
    assert training_log(again)["loss"].tolist() == training_log(whole)["loss"].tolist()
    assert again.facts.get("first_loss") == whole.facts.get("first_loss")
    saved = [load_file(stage.folder / "adapter" / "adapter_model.safetensors") for stage in (again, whole)]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[1])


def test_samples_are_the_same_for_the_same_seed(trained: Trained, task: Task, cases: list[Case]) -> None:
    run, sft, _ = trained
    how = Decoding(4, 4, run.params.samples_per_case, 1.0, run.params.seed)
    model, prompts = load_model(run.params, sft.folder / "adapter"), [task.messages(case) for case in cases]
    assert decode(model, load_chat(run.params), prompts, how).texts == sample_cases(run, task, cases, sft)


def test_an_arm_without_pairs_is_the_sft_model_and_says_so(trained: Trained) -> None:
    run, sft, _ = trained
    idle = fit(run, "idle", DPOTrainer, dpo_config(run.params, run), [], start=sft)
    assert idle.facts["steps"] == 0
    assert (idle.folder / "adapter" / "adapter_config.json").is_file()
    assert training_log(idle).empty


def test_loss_is_on_the_answer_and_its_end_token_only(params: RunParams, task: Task, cases: list[Case]) -> None:
    table = token_table(load_chat(params), task.messages(cases[0]), "yes")
    assert "".join(table.loc[table["in_loss"], "token"]) == "yes<|end|>"


def test_what_does_not_fit_the_context_is_an_error_or_counted(params: RunParams, task: Task, cases: list[Case]) -> None:
    chat = copy.copy(load_chat(params))
    chat.context = 300
    both = [*cases, dataclasses.replace(cases[0], case_id="long", text="dysuria " * 400)]
    with pytest.raises(DataError, match="case long needs .* set overlong to truncate or exclude"):
        fit_context(both, task, chat, params)
    kept, lengths = fit_context(both, task, chat, params.model_copy(update={"overlong": "exclude"}))
    assert (len(kept), lengths.excluded) == (len(cases), 1)
    kept, lengths = fit_context(both, task, chat, params.model_copy(update={"overlong": "truncate"}))
    assert (len(kept), lengths.truncated) == (len(both), 1)
    assert 290 <= lengths.longest <= 300
    assert kept[-1].text.startswith("dysuria dysuria")
    assert task.prompt(kept[-1]).endswith("no, yes.")


def test_an_answer_that_could_never_be_given_is_an_error_or_counted(
    params: RunParams, task: Task, cases: list[Case]
) -> None:
    """Seen once: max_new_tokens = 4 cut "malignant" to "malign", and every such answer counted as wrong."""
    chat, short = load_chat(params), params.model_copy(update={"max_new_tokens": 1})
    said = r"gold answers could never .* case case\d+, needs (\d) tokens .* set max_new_tokens = \1"
    with pytest.raises(DataError, match=said):
        fit_context(cases, task, chat, short)
    _, lengths = fit_context(cases, task, chat, short.model_copy(update={"overlong": "exclude"}))
    assert lengths.answer_cut == lengths.table()["gold answer too long"].iloc[0] == len(cases)
    recorded = [dataclasses.replace(case, demonstration={"label": "no, surely not"}) for case in cases[:2]]
    with pytest.raises(DataError, match="2 of 2 gold answers could never be given"):  # SFT would learn to be cut off
        fit_context(recorded, task, chat, params)
    private = copy.copy(task)
    private.card = task.card.model_copy(update={"shareable": False})
    with pytest.raises(DataError, match="^< 11 of < 11 gold answers .* the longest needs"):
        fit_context(recorded, private, chat, params)


def test_worked_examples_are_of_training_as_recorded_or_refused(
    params: RunParams, task: Task, cases: list[Case]
) -> None:
    chat, two = copy.copy(load_chat(params)), params.model_copy(update={"few_shot_k": 2})
    _, lengths = fit_context(cases, task, chat, params)
    train = [dataclasses.replace(case, demonstration={"label": "no"}) for case in cases[:4]]
    shown = worked_examples(train, lengths, task, chat, two)
    assert len(shown) == 2 and {case.gold["label"] for case in shown} == {"no"}
    chat.context = lengths.longest + 10
    with pytest.raises(DataError, match=r"few_shot_k = 2: .* set few_shot_k = 0"):
        worked_examples(train, lengths, task, chat, two)
    assert worked_examples(train, lengths, task, chat, params.model_copy(update={"few_shot_k": 0})) == []


def test_pairs_come_from_own_errors_and_are_counted(params: RunParams, task: Task, cases: list[Case]) -> None:
    samples = [["yes", "yes"], ["yes", "no"], ["maybe", "maybe"], ["", "no"]]
    made = make_pairs(params, task, cases[:4], samples)
    seen = [(p.case_id, p.chosen, p.rejected, p.source) for p in made.pairs]
    assert seen == [("case1", "no", "yes", "own"), ("case2", "yes", "maybe", "gold")]
    counted = {"pairs": 2, "samples that were wrong": 4, "repeated wrong samples dropped": 2}
    counted |= {"rejected is longer": 0, "pairs from other cases": 0, "pairs from groups of other splits": 0}
    assert audit_pairs(made, Splits([], cases[:4], [], cases[4:]))["value"][list(counted)].to_dict() == counted
