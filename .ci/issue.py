"""Keeps one GitHub issue per nightly grid and kind of regression, as `bench compare --format json` found them.

    python .ci/issue.py FOLDER GRID=RESULT...

FOLDER holds what the jobs left, nightly-GRID/compare.json each; RESULT is how the job of that grid ended, in GitHub's
words: success, failure, cancelled or skipped. What regressed is told apart by grid, method and what moved (quality,
time, memory, size, missing, damaged): the same regression on another night changes the issue it has. A job that ended
badly without a regression has an issue of its own, and a green night closes those of its grid. Reads GITHUB_TOKEN,
GITHUB_REPOSITORY and, as runners set them, GITHUB_API_URL, GITHUB_SERVER_URL, GITHUB_RUN_ID and GITHUB_SHA. Exit
codes: 0 done, 1 GitHub refused or is not there, 2 wrong usage. The token is sent to the API only and never printed.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import sys
import unicodedata
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LABEL = "nightly-regression"
RESULTS = ("success", "failure", "cancelled", "skipped")
STOPPED = "stopped"
"""The kind of what is no regression: a job that ended badly without one."""
MOST_ROWS = 60
TIMEOUT = 30.0


@dataclass(frozen=True)
class Regression:
    """All that got worse on a grid with one method in one way, or that the grid's job did not end.

    `signature` names it, night after night; `base` is the baseline it was judged by.
    """

    grid: str
    method: str
    kind: str
    rows: tuple[str, ...] = ()
    base: str = ""

    @property
    def signature(self) -> str:
        """Digest that an issue's text carries."""
        return hashlib.sha256(f"{self.grid}\n{self.method}\n{self.kind}".encode()).hexdigest()[:16]

    @property
    def marker(self) -> str:
        """The line by which the issue is found again."""
        return f"{prefix(self.grid)}{self.signature} -->"

    @property
    def title(self) -> str:
        """The issue's title."""
        if self.kind == STOPPED:
            return f"Nightly {self.grid}: the job ended badly without a regression"
        return f"Nightly {self.grid}: {plain(self.method)[:80]} regressed ({self.kind})"


def prefix(grid: str) -> str:
    """How the marker of every issue of a grid begins."""
    return f"<!-- prune-bench nightly {grid} "


def regressions(grid: str, found: Mapping[str, Any]) -> list[Regression]:
    """What a comparison's JSON says got worse, by method and kind."""
    rows: dict[tuple[str, str], list[str]] = {}
    for change in found.get("figures", ()):
        if change.get("verdict") == "regressed":
            share = change.get("relative")
            moved = f"{100 * share:+.3g} %" if isinstance(share, int | float) else ""
            cells = (
                *(change.get(name) for name in ("model", "target", "seed", "metric", "base", "new")),
                *(moved, change.get("reason")),
            )
            rows.setdefault((str(change.get("method")), str(change.get("kind"))), []).append(line(cells))
    for cell in found.get("missing", ()):
        cells = (
            *(cell.get(name) for name in ("model", "target", "seed", "phase")),
            "",
            "",
            "",
            cell.get("reason"),
        )
        rows.setdefault((str(cell.get("method")), "missing"), []).append(line(cells))
    for piece in found.get("damage", ()):
        rows.setdefault(("the store", "damaged"), []).append(line((*("",) * 7, piece)))
    base = str(found.get("base") or "")
    return [
        Regression(grid, method, kind, tuple(told), base) for (method, kind), told in sorted(rows.items())
    ]


def night(grid: str, result: str, file: Path) -> list[Regression]:
    """What one grid's job has to tell, given how it ended and the comparison it left, if any."""
    if result == "skipped":
        return []
    try:
        found = regressions(grid, json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, TypeError):
        found = []
    # A comparison without a regression is no reason to fail: something else was.
    return found or ([] if result == "success" else [Regression(grid, "the job", STOPPED, (result,))])


def plain(text: object) -> str:
    """Text on one line, without characters that act or hide."""
    joined = " ".join(str(text).split())
    return "".join("?" if unicodedata.category(character)[0] == "C" else character for character in joined)


def line(cells: Sequence[object]) -> str:
    """A row of a Markdown table in which nothing is markup, a mention or a link."""
    return "| " + " | ".join(shown(cell) for cell in cells) + " |"


def shown(cell: object) -> str:
    """One cell as text that Markdown shows literally."""
    if isinstance(cell, float):
        return f"{cell:.6g}"
    escaped = html.escape(plain("" if cell is None else cell)[:300], quote=False)
    escaped = re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", escaped)
    # A zero-width space keeps names from notifying people; `sparsegpt@owl` names nobody.
    escaped = re.sub(r"(?<!\w)@(?=\w)", "@&#8203;", escaped)
    return escaped.replace("://", ":&#47;&#47;").replace("www.", "www&#46;")


def body_of(regression: Regression, run: str, commit: str) -> str:
    """The issue's text: what got worse, on which grid, run and commit."""
    where = f"{run or 'a local run'}{f' at commit {commit}' if commit else ''}"
    if regression.kind == STOPPED:
        ended = ", ".join(map(shown, regression.rows))
        why = "Set-up, a step of `nox -s nightly` or the comparison itself failed: the log tells which."
        return f"{regression.marker}\nThe job of grid `{regression.grid}` ended as {ended} in {where}. {why}"
    rows = regression.rows[:MOST_ROWS]
    more = len(regression.rows) - len(rows)
    against = f" against {shown(regression.base)}" if regression.base else ""
    lines = [
        regression.marker,
        f"`bench compare` found this on grid `{regression.grid}`{against} in {where}:",
        "",
        "| model | target | seed | figure | baseline | now | change | note |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | --- |",
        *rows,
        *(("", f"And {more} more.") if more > 0 else ()),
        "",
        "If the change is intended, renew the baseline with `nox -s baseline` and review its diff.",
    ]
    return "\n".join(lines)


class GitHub:
    """The few calls of the REST API that are needed, on one repository."""

    def __init__(self, api: str, repository: str, token: str) -> None:
        self._base = f"{api.rstrip('/')}/repos/{repository}"
        self._token = token

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer's JSON. Raises OSError, whose text never holds the token."""
        request = urllib.request.Request(  # noqa: S310 - main() lets https, and plain http to this machine, through
            self._base + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Accept": "application/vnd.github+json",
                "Authorization": f"Bearer {self._token}",
                "Content-Type": "application/json",
                "User-Agent": "prune-bench-nightly",
                "X-GitHub-Api-Version": "2022-11-28",
            },
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
            return json.loads(answer.read() or b"null")

    def issues(self) -> Iterator[Mapping[str, Any]]:
        """Every open issue with our label."""
        page = 1
        while found := self.call("GET", f"/issues?state=open&labels={LABEL}&per_page=100&page={page}"):
            yield from (issue for issue in found if "pull_request" not in issue)
            page += 1

    def open(self, regression: Regression, text: str) -> int:
        """A new issue's number."""
        asked = {"title": regression.title, "body": text, "labels": [LABEL]}
        return int(self.call("POST", "/issues", asked)["number"])

    def update(self, number: int, text: str, note: str) -> None:
        """Put the text in the place of an issue's, and tell those who follow it."""
        self.call("PATCH", f"/issues/{number}", {"body": text})
        self.call("POST", f"/issues/{number}/comments", {"body": note})

    def close(self, number: int, note: str) -> None:
        """Say why, and close."""
        self.call("POST", f"/issues/{number}/comments", {"body": note})
        self.call("PATCH", f"/issues/{number}", {"state": "closed", "state_reason": "completed"})


def report(
    github: GitHub, nights: Mapping[str, tuple[str, Sequence[Regression]]], run: str, commit: str
) -> Iterator[str]:
    """Open, update or close the issues of every grid, given how it ended; yields a line on each.

    Doing it twice changes nothing.
    """
    known = list(github.issues())
    where = run or "a local run"
    for grid, (result, found) in nights.items():
        for regression in found:
            text = body_of(regression, run, commit)
            own = next((issue for issue in known if marked(issue, regression.marker)), None)
            if own is None:
                yield f"opened issue {github.open(regression, text)}: {regression.title}"
            elif own["body"] == text:
                yield f"issue {own['number']} says it already: {regression.title}"
            else:
                github.update(int(own["number"]), text, f"Still there in {where}.")
                yield f"updated issue {own['number']}: {regression.title}"
        if result == "success" and not found:
            gone = [issue for issue in known if marked(issue, prefix(grid))]
            for issue in gone:
                github.close(int(issue["number"]), f"Gone in {where}.")
                yield f"closed issue {issue['number']}: {grid} is green"
            if not gone:
                yield f"{grid}: no regression, no issue"


def marked(issue: Mapping[str, Any], marker: str) -> bool:
    """Whether an issue's text begins with the marker."""
    return str(issue.get("body") or "").startswith(marker)


def asked(words: Sequence[str]) -> dict[str, str]:
    """Results by grid. Raises ValueError for what is none."""
    found = dict(word.split("=", 1) for word in words)
    if not found or any(
        not re.fullmatch(r"[a-z0-9-]{1,40}", grid) or result not in RESULTS for grid, result in found.items()
    ):
        raise ValueError
    return found


def main(words: Sequence[str]) -> int:
    """The command."""
    token, repository = (os.environ.get(name, "") for name in ("GITHUB_TOKEN", "GITHUB_REPOSITORY"))
    api = os.environ.get("GITHUB_API_URL", "https://api.github.com")
    try:
        results = asked(words[1:])
    except ValueError:
        results = {}
    if not results or not token or not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        return fail(
            f"usage: issue.py FOLDER GRID=RESULT..., with RESULT one of {', '.join(RESULTS)}, and with GITHUB_TOKEN and "
            "GITHUB_REPOSITORY (owner/name) set",
            2,
        )
    if not re.match(r"https://|http://(127\.0\.0\.1|localhost)[:/]", api):
        return fail(f"GITHUB_API_URL is {plain(api)[:80]}: the token goes over https only", 2)
    nights = {
        grid: (result, night(grid, result, Path(words[0]) / f"nightly-{grid}" / "compare.json"))
        for grid, result in results.items()
    }
    server, number = (
        os.environ.get("GITHUB_SERVER_URL", "https://github.com"),
        os.environ.get("GITHUB_RUN_ID", ""),
    )
    run = f"{server}/{repository}/actions/runs/{number}" if number else ""
    try:
        for said in report(
            GitHub(api, repository, token), nights, run, os.environ.get("GITHUB_SHA", "")[:12]
        ):
            print(said)
    except urllib.error.HTTPError as error:
        return fail(
            f"GitHub answered {error.code} {plain(error.reason)[:80]}; the token needs issues: write", 1
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        return fail(f"GitHub cannot be reached or understood: {type(error).__name__}", 1)
    return 0


def fail(text: str, code: int) -> int:
    """One line on standard error."""
    print(f"error: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
