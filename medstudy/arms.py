"""The arms of a study, what they are compared with, and how they look: one table.

A new arm is a line here, its rate and epochs in the parameters, and its rows in the notebooks; metrics, contrasts,
verdicts' sentences, gates, figures and the rating forms read this table.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """One way to answer the test cases.

    Attributes:
        label: its name in figures and tables.
        colour, marker: of figures, as matplotlib reads them.
        start: the arm whose adapter its training goes on from; "base" for a new adapter, "" without training.
        trainer: TRL's class; "" without training.
        rows: what it is trained on: "train" or "prefer" cases, "pairs", their "chosen" sides, or "" without training.
        against: arms that it is contrasted with, on the same cases.
    """

    label: str
    colour: str
    marker: str
    start: str = ""
    trainer: str = ""
    rows: str = ""
    against: tuple[str, ...] = ()


#: In the order of tables and figures. Colours fall in lightness from base to dpo, so that they can be told apart in
#: grey; their hues suit the colour-blind.
ARMS: dict[str, Arm] = {
    "base": Arm("base", "#DEDEDE", "o"),
    "few_shot": Arm("few-shot", "#E6AB2B", "v", against=("base",)),
    "sft": Arm("SFT", "#4A9CCB", "s", "base", "SFTTrainer", "train", ("base",)),
    "sft_more": Arm("SFT, same labels", "#1F6391", "D", "sft", "SFTTrainer", "prefer", ("sft",)),
    "sft_chosen": Arm("SFT on chosen sides", "#7570B3", "d", "sft", "SFTTrainer", "chosen"),
    "dpo": Arm("DPO", "#6E1030", "^", "sft", "DPOTrainer", "pairs", ("sft", "sft_more", "sft_chosen")),
}
#: What would be used without a language model; never contrasted with the arms, hollow in figures.
BASELINES: dict[str, Arm] = {
    "majority": Arm("always the commonest", "white", "X"),
    "always_positive": Arm("always the positive one", "white", "*"),
    "lead": Arm("first words of the text", "white", "h"),
    "logistic_regression": Arm("logistic regression", "white", "P"),
    "gradient_boosting": Arm("gradient boosting", "white", "p"),
}
#: Arms that are trained, in the order of their training.
TRAINED = tuple(name for name, arm in ARMS.items() if arm.trainer)
#: Pairs of arms whose difference is reported.
CONTRASTS = tuple((name, other) for name, arm in ARMS.items() for other in arm.against)
