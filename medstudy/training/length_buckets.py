"""Rows of one training step are of similar length, so that little of a batch is padding."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

#: Rows are padded to a multiple of so many tokens.
PADDED_TO = 16


def draw_similar_lengths(trainer: Any) -> None:
    """Have a trainer draw its rows by `similar_lengths`, anew each epoch."""
    from torch.utils.data import Sampler

    rows, args = trainer.train_dataset, trainer.args
    lengths = [row_length(row) for row in rows]
    rows_a_step = args.train_batch_size * args.world_size * args.gradient_accumulation_steps

    class SimilarLengths(Sampler):
        def __len__(self) -> int:
            return len(lengths)

        def __iter__(self) -> Iterator[int]:
            # of seed and epoch alone: a training that goes on after a kill draws the same
            epoch = int((trainer.state.epoch or 0) + 1e-6)
            return iter(similar_lengths(lengths, rows_a_step, random.Random(f"{args.seed}/{epoch}")))

    trainer._get_train_sampler = lambda dataset=None: SimilarLengths()


def similar_lengths(lengths: list[int], rows_a_step: int, rng: random.Random) -> list[int]:
    """An order of the rows: random, but those of a step differ little in length.

    Lengths are compared as they will be padded, so rows of the same padded length are mixed freely. Rows that
    make no whole step are drawn from all and come last.
    """
    rows = rng.sample(range(len(lengths)), len(lengths))
    whole = len(rows) // rows_a_step * rows_a_step
    similar = sorted(rows[:whole], key=lambda row: -(-lengths[row] // PADDED_TO))
    steps = [similar[start : start + rows_a_step] for start in range(0, whole, rows_a_step)]
    rng.shuffle(steps)
    return [row for rows_of_step in steps for row in rows_of_step] + rows[whole:]


def row_length(row: dict[str, Any]) -> int:
    """Tokens of a row, for a pair of its longer side."""
    if "input_ids" in row:
        return len(row["input_ids"])
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
