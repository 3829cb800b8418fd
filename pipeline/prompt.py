"""A prompt's text, as a model sees it."""

from __future__ import annotations

import html
import re


def clean(text: str) -> str:
    """Entities resolved, runs of white space single, as Wan's pipelines do (which also mend broken Unicode where `ftfy`
    is installed)."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip()
