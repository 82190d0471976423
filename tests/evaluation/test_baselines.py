"""Baselines: scikit-learn on the same cases, in the same table as the arms."""

from __future__ import annotations

import json
import random

import pytest
from made_up import asked

from medstudy.data.cases import Case
from medstudy.data.load import load_card, load_cases
from medstudy.data.splits import Splits, split_cases
from medstudy.evaluation.baselines import baseline_predictions
from medstudy.evaluation.evaluate import evaluate
from medstudy.tasks import get_task


def test_numbers_with_gaps_and_the_commonest_label_that_knows_nothing() -> None:
    card = load_card("synthetic_urosepsis")
    task, cases = get_task(card.task, card), load_cases(card).cases
    splits = split_cases(cases, asked(150, 20, 100, 0, 0))
    table = baseline_predictions(task, splits, seed=0)
    metrics, contrasts = evaluate(table, card.task, card.labels, card.positive)
    assert set(metrics) == {"majority", "always_positive", "logistic_regression", "gradient_boosting"}
    # an F1 that whoever reads nothing has, too; the commonest answer may be no, with an F1 of 0
    share = sum(case.gold["label"] == card.positive for case in splits.test) / len(splits.test)
    assert metrics["always_positive"]["f1"]["value"] == pytest.approx(2 * share / (1 + share), abs=1e-5)
    assert contrasts == []
    assert metrics["majority"]["auroc"]["value"] == pytest.approx(0.5)
    for name in ("logistic_regression", "gradient_boosting"):
        assert metrics[name]["auroc"]["value"] > 0.75
        assert metrics[name]["brier"]["value"] < metrics["majority"]["brier"]["value"]


@pytest.mark.parametrize("rare", [True, False])
def test_positives_of_a_private_source_cannot_be_counted_from_a_baseline(rare: bool) -> None:
    card = load_card("synthetic_urosepsis").model_copy(update={"shareable": False})
    task, cases = get_task(card.task, card), load_cases(card).cases
    by_label = {label: [case for case in cases if case.gold["label"] == label] for label in ("yes", "no")}
    positives = by_label["yes"][: 10 if rare else 11]
    splits = Splits(by_label["yes"][50:80] + by_label["no"][50:80], [], [], [*positives, *by_label["no"][:30]])
    arms = set(baseline_predictions(task, splits, seed=0)["arm"])
    assert ({"always_positive", "majority"} <= arms) is not rare and "logistic_regression" in arms


def test_first_words_of_a_dialogue_are_beside_the_commonest_summary() -> None:
    card = load_card("synthetic_dialogues")
    task, cases = get_task(card.task, card), load_cases(card).cases
    table = baseline_predictions(task, split_cases(cases, asked(40, 10, 20, 0, 0)), seed=0)
    lead = table[table["arm"] == "lead"].set_index("case_id")["output"]
    texts = {case.case_id: " ".join(case.text.split()) for case in cases}
    assert len(lead) and all(texts[name].startswith(said) for name, said in lead.items())


def test_words_and_a_label_that_training_never_saw() -> None:
    card = load_card("medical_abstracts")
    task, labels, rng = get_task(card.task, card), card.labels["label"], random.Random(0)
    cases = [Case(f"c{i}", f"g{i}", f"{label} {rng.random()}", {"label": label}) for i, label in enumerate(labels * 6)]
    splits = Splits([c for c in cases[: -len(labels)] if c.gold["label"] != labels[0]], [], [], cases[-len(labels) :])
    table = baseline_predictions(task, splits, seed=0)
    right = table[table["arm"] == "logistic_regression"].set_index("case_id")["score_correct"]
    assert list(right) == [0.0] + [1.0] * (len(labels) - 1)


@pytest.mark.parametrize(
    ("name", "details", "gold"),
    [
        ("synthetic_messages", {}, {"provider": "", "urgency": ""}),
        ("synthetic_vignettes", {"findings": ["never told"]}, {"diagnosis": "gout"}),
    ],
)
def test_every_task_has_the_commonest_answer_of_training(name, details, gold) -> None:
    card = load_card(name)
    task = get_task(card.task, card)
    rare = {outcome: card.labels.get(outcome, ["flu"])[0] for outcome in gold}
    gold = {outcome: card.labels.get(outcome, [text])[-1] for outcome, text in gold.items()}
    train = [Case(f"t{i}", f"t{i}", "some pain", gold if i % 3 else rare) for i in range(9)]
    test = [Case(f"c{i}", f"c{i}", "y", gold if i % 2 else rare, details) for i in range(4)]
    table = baseline_predictions(task, Splits(train, [], [], test), seed=0)
    assert list(table["status"].unique()) == ["parsed"]
    table = table[table["arm"] == "majority"]
    assert {text for answer in table["answer"] for text in json.loads(answer).values()} == set(gold.values())
    assert "never told" not in table["output"].str.cat()
    assert table["score_correct"].tolist() == [0, 1, 0, 1]


def test_triage_has_a_regression_on_words_and_numbers_that_gives_rare_labels_their_weight() -> None:
    """Of triage there was none, and on few words scikit-learn's defaults answer with the commonest label."""
    card = load_card("ktas")
    task, labels, rng = get_task(card.task, card), card.labels, random.Random(0)
    urgency, provider = labels["urgency"], labels["provider"]
    cases = []
    for i in range(240):
        level = 0 if i % 2 else rng.randrange(1, len(urgency))
        where = 0 if rng.random() < 0.9 else 1
        gold = {"urgency": urgency[level], "provider": provider[where]}
        features = {"SBP": 100.0 + 30 * where + rng.random()}
        words = f"pain{level} {' '.join(rng.choices('abcdefgh', k=6))}"
        cases.append(Case(f"c{i}", f"g{i}", words, gold, {"features": features}))
    table = baseline_predictions(task, Splits(cases[:160], [], [], cases[160:]), seed=0)
    metrics, _ = evaluate(table, card.task, labels, None)
    assert set(metrics) == {"majority", "logistic_regression"}
    for name in ("urgency_macro_f1", "provider_macro_f1"):
        assert metrics["logistic_regression"][name]["value"] > 0.9 > 0.6 > metrics["majority"][name]["value"]
