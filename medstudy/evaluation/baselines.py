"""What a hospital would use without a language model: scikit-learn on the same cases. Baselines, not arms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from medstudy.data.cases import Case
from medstudy.data.splits import Splits
from medstudy.tasks.base import Task

if TYPE_CHECKING:
    import pandas as pd


def baseline_predictions(task: Task, splits: Splits, seed: int) -> pd.DataFrame:
    """Fit on the training cases, answer the test cases; a table as `predictions_table` makes it.

    Majority class, and logistic regression on TF-IDF of words (texts) or on standardised numbers; gradient
    boosting too on numbers, which it takes with missing values. Settings are scikit-learn's defaults.
    """
    from medstudy.evaluation.predictions import predictions_table

    labels = task.card.labels["label"]
    gold = [case.gold["label"] for case in splits.train]
    answers: dict[str, list[str]] = {}
    probabilities: dict[str, np.ndarray] = {}
    numeric = task.card.task == "numeric_classification"
    train, test = (_inputs(cases, numeric) for cases in (splits.train, splits.test))
    for name, model in _models(numeric, seed).items():
        found = model.fit(train, gold).predict_proba(test)
        # a label that is not in training has no column, and no chance
        columns = [list(model.classes_).index(x) if x in model.classes_ else -1 for x in labels]
        padded = np.column_stack([found, np.zeros(len(found))])[:, columns]
        answers[name] = [task.target(_answered(case, labels[i])) for case, i in _best(splits.test, padded)]
        probabilities[name] = padded
    return predictions_table(task, splits.test, answers, probabilities)


def _models(numeric: bool, seed: int) -> dict[str, Any]:
    from sklearn.dummy import DummyClassifier
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    majority = {"majority": DummyClassifier(strategy="prior")}
    regression = LogisticRegression(max_iter=1000)
    if not numeric:
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        return majority | {"logistic_regression": make_pipeline(words, regression)}
    numbers = (SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    return majority | {
        "logistic_regression": make_pipeline(*numbers, regression),
        "gradient_boosting": HistGradientBoostingClassifier(random_state=seed),
    }


def _inputs(cases: list[Case], numeric: bool) -> Any:
    if not numeric:
        return [case.text for case in cases]
    names = list(cases[0].details["features"])
    return np.array([[case.details["features"][name] for name in names] for case in cases], dtype=float)


def _best(cases: list[Case], probabilities: np.ndarray) -> zip:
    return zip(cases, probabilities.argmax(axis=1), strict=True)


def _answered(case: Case, label: str) -> Case:
    return Case(case.case_id, case.group_id, case.text, {"label": label})
