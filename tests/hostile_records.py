"""Records whose every name, note and fact tries to act in a page, a spreadsheet or a terminal."""

from __future__ import annotations

from sample_records import cell, record

from bench.results.records import Metric, Record

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "\"' onmouseover='alert(1)",
    "line\nbreak\r\n| cell | # heading",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(1)",
    "\u202egnp.exe\u2066",
    "[click](javascript:alert(1)) ![x](http://evil.example/x.png) <http://evil.example>",
    "http://evil.example/ www.evil.example **bold** `code`",
    "\x1b[31mred\x1b]0;title\x07",
    "{{ 7*7 }} {% raw %} ${x}",
    "x" * 10_000,
]


def hostile_records() -> list[Record]:
    """Finished, failed and odd records for each of the texts."""
    found: list[Record] = []
    for text in HOSTILE:
        found += cell(text, "dense", "0%")
        found += cell(
            text,
            text,
            text,
            warnings=(text,),
            parameters={text: text},
            provenance={text: text, "label": text},
        )
        found.append(
            record(status="failed", reason=text, model=text, method=text, target=text, subject=f"f{text}")
        )
    found.append(
        record(
            phase="perplexity",
            protocol="p",
            subject="m",
            metrics=[Metric(name=t, unit=t, value=1.5) for t in HOSTILE],
        )
    )
    return found
