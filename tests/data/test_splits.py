"""Splits: disjoint by group, the same test cases for every seed, exact sizes."""

import dataclasses
from collections import Counter

import pytest
from made_up import asked

from medstudy.data.cases import Case, DataError
from medstudy.data.splits import split_cases


def make(n, group=1, split=None, start=0):
    """n cases, every fourth 'yes'; `group` cases share a group id."""
    return [
        Case(f"c{i}", f"g{i // group}", f"text {i}", {"label": "yes" if i % 4 == 0 else "no"}, split=split)
        for i in range(start, start + n)
    ]


def ids(cases):
    return [c.case_id for c in cases]


def groups(cases):
    return {c.group_id for c in cases}


@pytest.mark.parametrize("group", [1, 3, 7])
def test_sizes_are_exact_and_groups_disjoint(group):
    splits = split_cases(make(400, group), asked(100, 50, 80, 0, 0))
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [100, 50, 80]
    assert not groups(splits.train) & groups(splits.test)
    assert not groups(splits.train) & groups(splits.validation)
    assert not groups(splits.validation) & groups(splits.test)
    assert len(set(ids(splits.all()))) == 231


def test_seeds_share_the_test_split_and_nothing_else():
    cases = make(300)
    first, again, other = (split_cases(cases, asked(80, 30, 60, seed, 5)) for seed in (1, 1, 2))
    assert ids(first.all()) == ids(again.all())
    assert ids(first.test) == ids(other.test)
    assert ids(first.train) != ids(other.train) and ids(first.validation) != ids(other.validation)
    assert set(ids(first.test)) != set(ids(split_cases(cases, asked(80, 30, 60, 1, 6)).test))


def test_order_of_the_cases_and_size_of_train_do_not_change_the_test_split():
    cases = make(300)
    want = ids(split_cases(cases, asked(80, 30, 60, 1, 5)).test)
    assert ids(split_cases(cases[::-1], asked(20, 10, 60, 3, 5)).test) == want
    assert ids(split_cases(cases, asked(20, 10, 30, 3, 5)).test) == want[:30]


def test_answers_keep_their_shares_however_rare():
    cases = [Case(f"c{i}", f"g{i}", "t", {"label": "abc"[(i % 10 > 6) + (i % 50 == 49)]}) for i in range(500)]
    splits = split_cases(cases, asked(100, 50, 200, 0, 0))
    for part in (splits.train, splits.validation, splits.test):
        share = Counter(c.gold["label"] for c in part)
        assert share["c"] in (len(part) // 50, len(part) // 50 + 1)
        assert abs(share["a"] - 0.7 * len(part)) <= 1.5


def test_zero_asks_for_all():
    splits = split_cases(make(200), asked(0, 0, 0, 0, 0, n_prefer=0))
    assert [len(cases) for cases in vars(splits).values()] == [67, 68, 15, 50]
    splits = split_cases(make(200), asked(50, 0, 0, 0, 0, n_prefer=0))
    assert [len(cases) for cases in vars(splits).values()] == [50, 85, 15, 50]


def test_cases_for_preferences_are_others_than_those_of_sft_also_by_group():
    splits = split_cases(make(400, 7), asked(100, 50, 80, 0, 0, n_prefer=90))
    assert len(splits.prefer) == 90
    assert not groups(splits.prefer) & groups([*splits.train, *splits.validation, *splits.test])
    given = make(60, split="prefer", start=400)
    splits = split_cases(make(400) + given, asked(100, 50, 80, 0, 0, n_prefer=60))
    assert set(ids(splits.prefer)) == set(ids(given)) and len(splits.train) == 100


def test_what_is_known_of_the_training_cases_is_what_was_recorded():
    cases = [dataclasses.replace(c, demonstration={"label": "no"}) for c in make(100)]
    splits = split_cases(cases, asked(40, 10, 20, 0, 0, n_prefer=20))
    assert {c.gold["label"] for c in splits.labelled[:40]} == {"no"}
    assert {c.gold["label"] for c in splits.labelled[40:]} == {"yes", "no"}


def test_given_splits_are_kept_and_validation_is_carved_out_of_train():
    cases = make(100, split="train") + make(40, split="test", start=100)
    splits = split_cases(cases, asked(0, 20, 0, 0, 0))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (79, 20, 40)
    assert {c.split for c in splits.test} == {"test"} and {c.split for c in splits.train + splits.validation} == {
        "train"
    }
    cases += make(30, split="validation", start=140)
    splits = split_cases(cases, asked(0, 20, 10, 0, 0))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (99, 20, 10)
    assert {c.split for c in splits.validation} == {"validation"}


@pytest.mark.parametrize(
    ("cases", "sizes", "said"),
    [
        (make(100), (50, 10, 101), "n_test = 101, but there are 100 cases"),
        (make(100), (50, 60, 50), "n_valid = 60, but there are 50 cases"),
        (make(100), (41, 10, 50), "n_train = 41, but there are 40 cases"),
        (make(100, split="train") + make(40, split="test", start=100), (50, 10, 41), "n_test = 41, but there are 40"),
        (make(100, group=100), (10, 10, 10), r"n_valid = 10, but there are 0 cases \(in 0 groups\)"),
        (make(100, split="test"), (10, 10, 10), "n_valid = 10, but there are 0 cases"),
        (make(100), (0, 50, 50), "n_prefer = 1, but there are 0 cases"),
        (make(101), (10, 10, 1), "all < 11 cases of the test split have one label, 'no'; raise n_test"),
        (make(100), (10, 10, 95), r"n_valid = 10, but there are < 11 cases \(in < 11 groups\)"),
    ],
)
def test_what_cannot_be_drawn_is_refused(cases, sizes, said):
    with pytest.raises(DataError, match=said):
        split_cases(cases, asked(*sizes, 0, 0))
