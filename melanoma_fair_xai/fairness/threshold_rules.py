"""The names of the rules by which a threshold is chosen; imports nothing heavy, as flags read them."""

import re

from melanoma_fair_xai.base.errors import UserError

THRESHOLD_RULES = "youden, sensitivity=VALUE or specificity=VALUE with VALUE between 0 and 1, such as sensitivity=0.9"


def parse_threshold_rule(text: str) -> tuple[str, float | None]:
    """("youden", None), ("sensitivity", 0.9) or ("specificity", 0.9); UserError for anything else."""
    if text == "youden":
        return text, None
    match = re.fullmatch(r"(sensitivity|specificity)=(0?\.\d+)", text)
    if not match or float(match[2]) == 0:
        raise UserError(f"--threshold_rule {text}: unknown rule; give {THRESHOLD_RULES}")
    return match[1], float(match[2])
