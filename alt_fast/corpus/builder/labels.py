"""Action labels as text."""

import re
import unicodedata

from alt_fast.data.annotations import spoken


def normalize_label(label: str) -> str:
    """A label as text in lower case: "BaseballPitch" and "baseball_pitch" become "baseball pitch".

    What it says not to be, as in "petting animal (not cat)", is left out; other words in brackets stay.
    """
    text = spoken(unicodedata.normalize("NFKC", label)).lower()
    text = re.sub(r"\(\s*not\b[^)]*\)", " ", text)
    text = re.sub(r"[^\w\s'-]|_", " ", text)
    return " ".join(text.split())
