"""How figures and names are spelled: numbers with units, and text that can neither act nor hide."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any, Final

MISSING: Final = "–"
LONGEST: Final = 240
_PERCENT: Final = {
    *("sparsity", "sparsity_selected", "top1_flip_rate", "accuracy"),
    *("acc", "acc_norm", "acc_stderr", "acc_norm_stderr"),
    *("acc_avg", "acc_avg_partial", "acc_avg_stderr", "acc_avg_partial_stderr"),
}
"""Shares, by the part of a metric's name before its task."""
_SPOKEN: Final = {
    "kl_to_dense": "KL to dense",
    "top1_flip_rate": "Top-1 flips",
    "nll": "NLL",
    "flops_per_token": "FLOPs per token",
    "heldout_error": "Held-out error",
    "bytes_bitmap": "Bytes as bitmaps",
}


def clean(text: Any, longest: int = LONGEST) -> str:
    """Text on one line, control and format characters spelled out, cut where long with its length said."""
    whole = str(text)
    if len(whole) <= longest and whole.isprintable():
        return whole
    shown = "".join(_visible(character) for character in whole[:longest])
    return shown if len(whole) <= longest else f"{shown}… ({len(whole):,} characters)"


def _visible(character: str) -> str:
    if character in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[character]
    # Format characters (bidirectional overrides, zero-width joints) can make one name look like another.
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return f"\\u{ord(character):04x}"
    return character


def escape_markdown(text: Any, longest: int = LONGEST) -> str:
    """`clean` text that Markdown and the HTML in it show literally; bare addresses do not become links, nor names mentions."""
    shown = clean(text, longest).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = re.sub(r"([\\`*\[\]|~#])", r"\\\1", shown)
    shown = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", shown)
    # A mention would notify people; `sparsegpt@owl` is none.
    shown = re.sub(r"(?<!\w)@(?=\w)", "@&#8203;", shown)
    shown = re.sub(r"^([+-]|\d+[.)])(?=\s|$)", r"\\\1", shown)
    return shown.replace("://", ":&#47;&#47;").replace("www.", "www&#46;")


def metric_title(name: str) -> str:
    """A metric's name as a heading."""
    return _SPOKEN.get(name) or (clean(name, 60).replace("_", " ").capitalize() if name else MISSING)


def figure(value: float | None, unit: str, name: str = "", *, share_digits: int = 2) -> str:
    """A figure with its unit as a reader wants it, shares in percent; `MISSING` where there is none."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite" if value > 0 else "minus infinite"
    if _share(name) and unit == "1":
        return f"{100 * value:.{share_digits}f} %"
    if unit == "byte":
        return _scaled(value, "B", 1000)
    if unit == "s":
        return _duration(value)
    if unit == "FLOP/token":
        return _scaled(value, "FLOP/token", 1000)
    number = _count(value) if isinstance(value, int) else _decimal(value)
    return number if unit == "1" else f"{number} {clean(unit, 40)}"


def percent_change(ratio: float | None) -> str:
    """A ratio to the dense figure as a signed change in percent."""
    if ratio is None:
        return MISSING
    if not math.isfinite(ratio):
        return "not finite"
    change = 100 * (ratio - 1)
    if abs(change) >= 1e6:
        return f"{change:+.2e} %"
    return f"{change:+,.0f} %" if abs(change) >= 1000 else f"{change:+.{1 if abs(change) >= 10 else 2}f} %"


def spread(value: str, half_width: float | None, unit: str = "1", name: str = "") -> str:
    """`value ± half width`, left out where no interval exists or every seed gave the same figure."""
    if not half_width:
        return value
    plain = unit not in ("byte", "s", "FLOP/token") and not _share(name)
    return f"{value} ± {f'{half_width:.2g}' if plain else figure(half_width, unit, name)}"


def _share(name: str) -> bool:
    return name.partition("/")[0] in _PERCENT


def _count(value: int) -> str:
    return f"{value:,}"


def _decimal(value: float) -> str:
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1e6 or size < 1e-4:
        return f"{value:.3e}"
    if size >= 1000:
        return f"{value:,.1f}"
    return f"{value:.2f}" if size >= 10 else f"{value:.3f}" if size >= 0.1 else f"{value:.3g}"


def _scaled(value: float, unit: str, base: int) -> str:
    steps = ("", "k", "M", "G", "T", "P")
    size, step = float(value), 0
    while abs(size) >= base and step < len(steps) - 1:
        size, step = size / base, step + 1
    number = f"{size:.0f}" if step == 0 else f"{size:.3g}" if abs(size) < 1000 else f"{size:.4g}"
    return f"{number} {steps[step]}{unit}"


def _duration(seconds: float) -> str:
    if abs(seconds) < 1e-3:
        return f"{seconds * 1e6:.3g} µs" if seconds else "0 s"
    if abs(seconds) < 1:
        return f"{seconds * 1e3:.3g} ms"
    if abs(seconds) < 60:
        return f"{seconds:.3g} s"
    if abs(seconds) > 1e9:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
