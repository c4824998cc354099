"""Templates, and what all pages share."""

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Any

from fastapi import Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse

from ctguard import RESEARCH_USE_ONLY, __version__
from ctguard.core.threshold import logit
from ctguard.serve.store.models import now

STATIC = Path(__file__).with_name("static")
NOTICE = "Research use only - not a medical device - not for diagnosis"
CLEAR = "no evidence of tampering found"
_HALF_WIDTH = 8.0
"""The bar of a score reaches so far, in units of its logit, to each side of the threshold."""


def page(request: Request, template: str, code: int = 200, /, **values: Any) -> HTMLResponse:
    """A template, with the notice, the person and their CSRF token."""
    who = getattr(request.state, "who", None)
    text = _PAGES.get_template(template).render(
        who=who, csrf=who.csrf if who else "", path=request.url.path, **{"message": "", **values}
    )
    return HTMLResponse(text, code)


def verdict_words(tampered: bool | None) -> str:
    """What a verdict says of a series; a clean one never says "authentic"."""
    return "not judged" if tampered is None else "evidence of tampering" if tampered else CLEAR


def bar(score: float, threshold: float) -> float:
    """Where a score stands on its bar, 0..100; the threshold is in the middle."""
    return 50 + 50 * max(-1.0, min(1.0, (logit(score) - logit(threshold)) / _HALF_WIDTH))


def age(then: datetime) -> str:
    """How long ago, in the largest unit that fits."""
    seconds = max(0.0, (now() - then).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return "just now"


def when(then: datetime | None) -> str:
    """A time for people, UTC."""
    return "–" if then is None else then.strftime("%Y-%m-%d %H:%M UTC")


def score_text(value: float | None) -> str:
    """Four digits, for scores crowd near 0 and 1; never rounded up to certainty."""
    if value is None:
        return "–"
    return "> 0.9999" if 0.99995 <= value < 1 else f"{value:.4f}"


def triple(values: list[float]) -> str:
    """Three numbers, to a tenth."""
    return ", ".join(f"{value:.1f}" for value in values)


def _static(name: str) -> str:
    """The address of a file of ours; it changes with the file, so that browsers may keep it."""
    return f"/static/{name}?v={_HASHES[name]}"


_HASHES = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in STATIC.iterdir() if path.is_file()}
_PAGES = Environment(
    loader=PackageLoader("ctguard.serve.web"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_PAGES.filters.update(age=age, when=when, score=score_text, triple=triple, words=verdict_words)
_PAGES.globals.update(
    notice=NOTICE, version=__version__, static=_static, bar=bar, research=RESEARCH_USE_ONLY, clear=CLEAR
)
