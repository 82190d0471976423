import numpy as np
import pandas as pd
import pytest
from made_up import labelled, rows
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from medstudy.evaluation.evaluate import evaluate
from medstudy.evaluation.metrics import PredictionsError, auroc, case_sums, score, task_metrics, value_of
from medstudy.tasks.base import Metric

LABELS = {"label": ["a", "b", "c", "d"]}
MACRO = Metric("macro_f1", "f1", "label")


def by_name(task, name, labels=LABELS, positive=None):
    return next(m for m in task_metrics(task, labels, positive) if m.name == name)


@pytest.mark.parametrize("seed", range(5))
def test_f1_and_accuracy_equal_sklearn_also_on_a_resample(seed):
    rng = np.random.default_rng(seed)
    gold, said = rng.choice(list("abc"), 40), rng.choice(["a", "b", "c", "d", ""], 40)
    frame, macro = labelled("label", list(gold), list(said)), {"average": "macro", "zero_division": 0}
    assert score(MACRO, frame, LABELS) == pytest.approx(f1_score(gold, said, labels=sorted(set(gold)), **macro))
    one = Metric("f1", "f1", "label", label="b")
    assert score(one, frame, LABELS) == pytest.approx(f1_score(gold, said, labels=["b"], average=None)[0])
    accuracy = by_name("text_classification", "accuracy")
    assert score(accuracy, frame, LABELS) == pytest.approx(accuracy_score(gold, said))
    drawn = rng.integers(0, 40, 40)
    sums = np.tensordot(np.bincount(drawn, minlength=40), case_sums(MACRO, frame, LABELS), axes=1)
    expected = f1_score(gold[drawn], said[drawn], labels=sorted(set(gold[drawn])), **macro)
    assert value_of(MACRO, sums) == pytest.approx(expected)


def test_an_answer_out_of_range_is_no_answer():
    out = labelled("label", ["a", "b"], ["a", "b"]).assign(status=["parsed", "out_of_range"])
    assert score(MACRO, out, LABELS) == 0.5
    found = [score(by_name("text_classification", m), out, LABELS) for m in ("unparsed", "accuracy_parsed")]
    assert found == [0.5, 1]


def test_positive_label_of_two_replaces_macro_f1_whatever_the_outcome_is_called():
    two = {"finding": ["yes", "no"]}
    for labels, positive, name in ((two, "yes", "f1"), (two, None, "macro_f1"), (LABELS, "a", "macro_f1")):
        assert [m.name for m in task_metrics("text_classification", labels, positive) if m.primary] == [name]
    frame = labelled("finding", ["yes", "no", "no"], [""] * 3).assign(score_p_positive=[0.8, 0.9, 0.1])
    terms = case_sums(by_name("text_classification", "auroc", two, "yes"), frame, two)
    assert auroc(terms, np.ones((1, 3))) == pytest.approx([0.5])


def test_triage_errors_follow_the_order_of_urgency():
    labels = {"provider": ["nurse"], "urgency": ["later", "soon", "now"]}
    gold = [{"provider": "nurse", "urgency": u} for u in ("now", "soon", "soon", "later")]
    said = [{"provider": "nurse", "urgency": u} for u in ("later", "later", "now")] + [{}]
    found = [
        score(by_name("clinical_triage", m, labels), rows("sft", gold, said), labels)
        for m in ("under_triage", "over_triage")
    ]
    assert found == [0.5, 0.25]


def test_refuses_unknown_golds_and_missing_scores():
    with pytest.raises(PredictionsError, match="'e'"):
        score(MACRO, labelled("label", ["e"], ["a"]), LABELS)
    with pytest.raises(PredictionsError, match="score_factual_f1"):
        score(by_name("summarization", "factual_f1"), labelled("summary", ["x"], ["x"]), {})


def test_auroc_equals_scikit_learn_also_with_weights_and_ties():
    rng = np.random.default_rng(0)
    positive, scores = rng.random(80) < 0.3, rng.integers(0, 9, 80) / 9
    terms = np.stack([scores, positive], axis=-1)[:, None, :]
    weights = rng.integers(0, 4, (5, 80)).astype(float)
    expected = [roc_auc_score(positive, scores, sample_weight=w) for w in weights]
    assert auroc(terms, weights) == pytest.approx(expected)
    assert np.isnan(auroc(terms, positive[None].astype(float)))  # a draw without negatives


def test_an_auroc_that_hangs_on_one_case_has_no_interval():
    """Without its one positive case there is none: its influence was taken for 0, with p 1e-6 for noise."""
    gold = [{"label": "yes" if i == 0 else "no"} for i in range(40)]
    draws = np.random.default_rng(0).random((2, 40))
    tables = [
        rows(arm, gold, [{"label": "no"}] * 40, score_p_positive=p, score_brier=0.1)
        for arm, p in zip(("sft", "dpo"), draws, strict=True)
    ]
    metrics, contrasts = evaluate(pd.concat(tables), "text_classification", {"label": ["yes", "no"]}, "yes")
    assert metrics["sft"]["auroc"]["value"] is not None and metrics["sft"]["auroc"]["low"] is None
    [row] = [row for row in contrasts if row["metric"] == "auroc"]
    assert row["p"] is None and row["low"] is None
