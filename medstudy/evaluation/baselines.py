"""What a hospital would use without a language model: scikit-learn on the same cases. Baselines, not arms."""

import warnings
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from medstudy.data.cases import SMALLEST_COUNT, Case
from medstudy.data.splits import Splits
from medstudy.evaluation.predictions import predictions_table
from medstudy.tasks.base import Task
from medstudy.tasks.summarization import Summarization

#: The column of a case's text; no card can have one of this name.
WORDS = "{text}"
#: Strengths of the logistic regression's penalty (scikit-learn's C) that are tried, and parts of the cross-validation.
STRENGTHS, PARTS = [0.1, 1.0, 10.0, 100.0], 5


def baseline_predictions(task: Task, splits: Splits, seed: int) -> pd.DataFrame:
    """Fit on the cases of train and prefer, answer the test cases; a table as `predictions_table` makes it.

    The most frequent answer of training, outcome by outcome. Where all outcomes have labels also logistic regression
    for each of them, on TF-IDF of words, on standardised numbers or on both: rare labels weigh as much as common ones,
    and C is chosen by cross-validation of macro-F1. For numbers alone also gradient boosting. Of one outcome the
    positive label for everybody (the F1 to beat; from it the positives can be counted, so of a private source not where
    either side is few). For summaries the first words of the text (``lead``), as many as a gold summary has.
    """
    labels = task.card.labels
    commonest = {o: Counter(c.gold[o] for c in splits.labelled).most_common(1)[0][0] for o in splits.labelled[0].gold}
    if task.open_outcomes:
        answers = {"majority": [_said(task, case, commonest) for case in splits.test]}
        if isinstance(task, Summarization):
            words = int(np.median([len(task.target(case).split()) for case in splits.labelled]))
            answers["lead"] = [" ".join(case.text.split()[:words]) for case in splits.test]
        return predictions_table(task, splits.test, answers)
    train, test = (_features(cases, task) for cases in (splits.labelled, splits.test))
    found: dict[str, dict[str, np.ndarray]] = {}
    for outcome, names in labels.items():
        gold = [case.gold[outcome] for case in splits.labelled]
        for name, model in _models(train, gold, seed, task.card.positive).items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a label that a part of the cross-validation lacks
                given = model.fit(train, gold).predict_proba(test)
            # a label that is not in training has no column, and no chance
            columns = [list(model.classes_).index(x) if x in model.classes_ else -1 for x in names]
            found.setdefault(name, {})[outcome] = np.column_stack([given, np.zeros(len(given))])[:, columns]
    if len(labels) == 1:
        outcome = next(iter(labels))
        for name, label in (("majority", commonest[outcome]), ("always_positive", task.card.positive)):
            # the F1 of always saying it counts it: of a private source not where few have it, or few have it not
            n = sum(case.gold[outcome] == label for case in splits.test)
            if min(n, len(splits.test) - n) < (1 if task.card.shareable else SMALLEST_COUNT):
                found.pop(name, None)
    best = {name: {o: of[o].argmax(axis=1) for o in of} for name, of in found.items()}
    answers = {
        name: [_said(task, case, {o: labels[o][of[o][i]] for o in of}) for i, case in enumerate(splits.test)]
        for name, of in best.items()
    }
    alone = {name: next(iter(of.values())) for name, of in found.items()} if len(labels) == 1 else None
    return predictions_table(task, splits.test, answers, alone)


def _features(cases: list[Case], task: Task) -> pd.DataFrame:
    """A row a case: its numbers, where the card names some, and its text, unless it is nothing but these."""
    numbers = pd.DataFrame([case.details.get("features", {}) for case in cases], dtype=float)
    fields, read = task.card.columns.fields, task.card.columns.placeholders
    words = not len(numbers.columns) or (fields and (read or any(field.column not in numbers for field in fields)))
    return numbers.assign(**{WORDS: [case.text for case in cases]}) if words else numbers


def _models(train: pd.DataFrame, gold: list[str], seed: int, positive: str | None) -> dict[str, Any]:
    from sklearn.compose import make_column_transformer
    from sklearn.dummy import DummyClassifier
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    numbers = [name for name in train if name != WORDS]
    standard = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    parts = [(standard, numbers)] if numbers else []
    parts += [(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), WORDS)] if WORDS in train else []
    weighed = LogisticRegression(max_iter=2000, class_weight="balanced")
    regression = make_pipeline(make_column_transformer(*parts), weighed)
    counts = sorted(Counter(gold).values(), reverse=True)
    if len(counts) > 1 and counts[1] > 1:  # two labels in each part, or there is nothing to choose C by
        tried, parts = {"logisticregression__C": STRENGTHS}, min(PARTS, counts[1])
        regression = GridSearchCV(regression, tried, scoring="f1_macro", cv=parts)
    models = {"majority": DummyClassifier(strategy="prior")}
    models |= {"always_positive": DummyClassifier(strategy="constant", constant=positive)} if positive in gold else {}
    models |= {"logistic_regression": regression} if len(counts) > 1 else {}
    models |= {} if WORDS in train else {"gradient_boosting": HistGradientBoostingClassifier(random_state=seed)}
    return models


def _said(task: Task, case: Case, gold: dict[str, str]) -> str:
    """The answer ``gold`` in the words of the task; nothing else of the test case is in it."""
    return task.target(replace(case, gold=dict.fromkeys(case.gold, "") | gold, details={}))
