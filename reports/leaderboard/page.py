"""The leaderboard as a page and as a JSON feed (jsonfeed.org, version 1.1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.results.records import now
from reports.comparison import SIZE_PHASE
from reports.layout import render
from reports.leaderboard.boards import Board, Placed, boards, perplexity
from reports.leaderboard.entries import Entry
from reports.leaderboard.submission import notes_of
from reports.statistics import Summary, ratio
from reports.wording import MISSING, clean, figure, percent_change, spread
from reports.writing import number, write_texts

__all__ = ["Leaderboard", "feed", "write_leaderboard"]

TITLE: Final = "Leaderboard of one-shot pruning"


@dataclass(frozen=True)
class Leaderboard:
    """The files written, and how many boards and entries they show."""

    page: Path
    feed: Path
    boards: int
    entries: int


def write_leaderboard(stores: Sequence[Path], folder: Path) -> Leaderboard:
    """Write index.html and feed.json of the stores to `folder`. Raises `StoreError`, `MachineError`."""
    found = boards(stores)
    page, feed_file = folder / "index.html", folder / "feed.json"
    names = [clean(out.resolve().name, 80) for out in stores]
    notes = notes_of(stores)
    texts = {
        page: _page(found, names, notes),
        feed_file: json.dumps(feed(found, notes), indent=1, allow_nan=False),
    }
    write_texts(folder, texts)
    return Leaderboard(page, feed_file, len(found), sum(len(board.placed) for board in found))


def _page(found: Sequence[Board], stores: Sequence[str], notes: Sequence[str]) -> str:
    families: dict[str, list[Board]] = {}
    for board in found:
        families.setdefault(board.ground.family, []).append(board)
    entries = sum(len(board.placed) for board in found)
    return render(
        "leaderboard.html.j2",
        title=TITLE,
        headline=(
            f"{entries:,} results in {len(found):,} tables over {len(families)} model families."
            if found
            else "No one-shot result has been evaluated yet."
        ),
        families=[
            {"name": clean(name, 60), "boards": [_shown(board) for board in members]}
            for name, members in families.items()
        ],
        stores=stores,
        notes=notes,
    )


def _shown(board: Board) -> dict[str, Any]:
    ground = board.ground
    model = clean(ground.model, 80) + (f" ({clean(board.label, 60)})" if board.label else "")
    dense = "was not measured" if board.dense is None else f"has {figure(board.dense, '1')}"
    history = sorted(
        ((past, placed.entry) for placed in board.placed for past in placed.entry.past),
        key=lambda pair: (pair[0].day, pair[1].name),
        reverse=True,
    )
    return {
        "link": board.link,
        "title": f"{model} · {clean(board.target, 40)} · {clean(ground.protocol, 60)}",
        "note": f"The dense model {dense}. Weights {clean(ground.dtype, 20)}, model revision "
        f"{clean(ground.revision, 60) or 'not recorded'}.",
        "rows": [_row(placed, board.dense) for placed in board.placed],
        "ties": [
            f"{clean(placed.entry.name, 80)} shares place {placed.place}: {clean(placed.why, 200)}."
            for placed in board.placed
            if placed.why
        ],
        "history": [
            {
                "day": clean(past.day, 20),
                "name": clean(entry.name, 80),
                "perplexity": _summary(past.perplexity),
                "commit": clean(past.commit, 20) or MISSING,
            }
            for past, entry in history
        ],
    }


def _row(placed: Placed, dense: float | None) -> dict[str, str]:
    entry = placed.entry
    return {
        "link": entry.link,
        "place": f"{'=' if placed.shared else ''}{placed.place}",
        "why": placed.why or "Link to this result",
        "name": clean(entry.name, 80),
        "perplexity": _summary(perplexity(entry)),
        "change": percent_change(ratio(perplexity(entry).mean, dense)),
        "divergence": _summary(entry.figure("kl_to_dense")),
        "sparsity": figure(entry.figure("sparsity", SIZE_PHASE).mean, "1", "sparsity", share_digits=1),
        "seeds": ", ".join(map(str, entry.seeds)) or "none",
        "calibration": clean(entry.calibration, 40) or "none",
        "measured": _measured(entry)[:10],
        "store": ", ".join(dict.fromkeys(clean(result.name, 40) for result in entry.results)),
    }


def _summary(summary: Summary) -> str:
    return spread(figure(summary.mean, "1"), summary.half_width)


def _measured(entry: Entry) -> str:
    return max(result.evaluation.finished for result in entry.results)


def feed(found: Sequence[Board], notes: Sequence[str] = ()) -> dict[str, Any]:
    """The feed: an item a result, newest first, its figures under `_bench`; links are those of the page.

    `notes`: what readers should know of the stores.
    """
    items = [_item(board, placed) for board in found for placed in board.placed]
    items.sort(key=lambda item: (item["date_published"], item["id"]), reverse=True)
    return {
        "version": "https://jsonfeed.org/version/1.1",
        "title": TITLE,
        "items": items,
        "_bench": {"made": now(), "notes": list(notes)},
    }


def _item(board: Board, placed: Placed) -> dict[str, Any]:
    entry, ground = placed.entry, board.ground
    where = f"{clean(ground.model, 80)} at {clean(board.target, 40)}, {clean(ground.protocol, 60)}"
    return {
        "id": entry.link,
        "url": f"index.html#{entry.link}",
        "title": f"{clean(entry.name, 80)} on {where}",
        "content_text": f"Place {placed.place} of {len(board.placed)}: perplexity {_summary(perplexity(entry))}.",
        "date_published": _measured(entry),
        "_bench": {
            "family": ground.family,
            "model": ground.model,
            "revision": ground.revision,
            "protocol": ground.protocol,
            "text": ground.text,
            "dtype": ground.dtype,
            "target": board.target,
            "board": board.link,
            "method": entry.method,
            "parameters": json.loads(entry.parameters),
            "calibration": entry.calibration,
            "seeds": list(entry.seeds),
            "place": placed.place,
            "shared": placed.shared,
            "why": placed.why,
            "dense": number(board.dense),
            "perplexity": _figures(perplexity(entry)),
            **{
                name: _figures(entry.figure(name, phase))
                for name, phase in (
                    ("kl_to_dense", "perplexity"),
                    ("top1_flip_rate", "perplexity"),
                    ("sparsity", SIZE_PHASE),
                    ("parameters_nonzero", SIZE_PHASE),
                    ("bytes", SIZE_PHASE),
                )
            },
            "subjects": [result.evaluation.subject for result in entry.results],
            "stores": list(dict.fromkeys(result.name for result in entry.results)),
            "history": [
                {"day": past.day, "commit": past.commit, "perplexity": number(past.perplexity.mean)}
                for past in entry.past
            ],
        },
    }


def _figures(summary: Summary) -> dict[str, Any]:
    return {"mean": number(summary.mean), "half_width": number(summary.half_width), "seeds": summary.count}
