"""The arms of a study, what they are compared with, and how they look: one table."""

from __future__ import annotations

ARMS = ("base", "few_shot", "sft", "sft_more", "dpo")
#: What a clinician-informatician would otherwise use; never contrasted with the arms.
BASELINES = ("majority", "logistic_regression", "gradient_boosting")
CONTRASTS = (("sft", "base"), ("dpo", "sft"), ("dpo", "sft_more"), ("few_shot", "base"))
