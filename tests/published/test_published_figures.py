"""The packaged figures: complete, unchanged, each with its source; hostile tables are refused."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import pytest

import bench.published
from bench.published.figures import COLUMNS, caveats, caveats_of, figures, parse, source_of, sources
from bench.published.query import Filters, select
from bench.published.recipes import recipes
from bench.published.requests import request
from methods.errors import MachineError, UserError

FILE = Path(bench.published.__file__).with_name("published.csv")
DIGEST = "ed479cf1a5a0d8beba86b50c8ff162d818948d17806de12d03a3908fa5f38f86"
LINE = "2301.00774,Table 1,opt-125m,dense,0,none,16,none,ppl_wikitext2,27.66,a PDF,2048,1,"


def test_nothing_is_dropped_and_nothing_changed() -> None:
    raw = FILE.read_bytes()
    assert hashlib.sha256(raw).hexdigest() == DIGEST
    cells = list(csv.reader(raw.decode().splitlines()))
    assert [list(row.cells) for row in figures()] == cells[1:]
    assert len(figures()) == 2474
    assert sum(row.primary for row in figures()) == 2204


def test_every_figure_has_a_source_and_every_source_a_figure() -> None:
    assert {row.source for row in figures()} == set(sources())
    assert all(row.where_found for row in figures())
    assert len({source.name for source in sources().values()}) == len(sources())


def test_every_caveat_warns_of_something_and_suspects_are_marked() -> None:
    hit = {caveat for row in figures() for caveat in caveats_of(row)}
    assert hit == set(caveats())
    assert {caveat.trap for caveat in caveats()} - {"-"} == {str(number) for number in range(1, 16)}
    marked = [row for row in figures() if "suspect" in row.note.lower() or "INCONSISTENT" in row.note]
    assert len(marked) > 50
    assert all(any(caveat.kind == "suspect" for caveat in caveats_of(row)) for row in marked)
    digitised = [row for row in figures() if "digitised" in row.table]
    assert all({caveat.kind for caveat in caveats_of(row)} & {"digitised", "inferred"} for row in digitised)


def test_labels_say_what_was_varied() -> None:
    by_table = {row.table: row for row in figures()}
    assert by_table["Figure 10 (digitised, mask blocksize=8192)"].variants == {"blocksize": "8192"}
    assert by_table["Table 7 (group=(input;128))"].variants == {"group": "input;128"}
    assert by_table["Figure 2 (digitised, nsamples=16)"].samples == 16
    five = by_table["Table 5 (128 calib samples)"]
    assert (five.samples, five.calibration_length) == (128, 2048)


def test_wanda_calibrates_at_the_context_that_it_evaluates_at() -> None:
    lengths = {
        (row.model, row.length, row.calibration_length)
        for row in figures()
        if source_of(row).name == "wanda" and row.method == "wanda" and row.metric == "ppl_wikitext2"
    }
    assert ("llama-7b", 2048, 2048) in lengths
    assert ("llama-2-7b", 4096, 4096) in lengths


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "other columns"),
        ("source,value\nx,1\n", "other columns"),
        (f"{','.join(COLUMNS)}\n{LINE},surplus\n", "line 2 has 15 cells"),
        (f"{','.join(COLUMNS)}\n{LINE.replace('27.66', 'many')}\n", "'many', which is no number"),
        (f"{','.join(COLUMNS)}\n{LINE.replace('27.66', 'inf')}\n", "'inf', which is no number"),
        (f"{','.join(COLUMNS)}\n{LINE.replace(',0,none', ',1.5,none')}\n", "sparsity 1.5"),
        (f"{','.join(COLUMNS)}\n{LINE.replace(',2048,', ',-4,')}\n", "seqlen '-4'"),
        (f"{','.join(COLUMNS)}\n{LINE.replace(',1,', ',yes,')}\n", "primary 'yes'"),
        (f"{','.join(COLUMNS)}\n{LINE}\n{LINE}\n", "line 3 is primary, and so is line 2"),
        (f"{','.join(COLUMNS)}\n{LINE.replace('a PDF', '')}\n", "lacks its source"),
    ],
)
def test_damaged_tables_are_refused(text: str, said: str) -> None:
    with pytest.raises(MachineError, match=r"damaged: line \d") as caught:
        parse(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_query() -> None:
    found = select(
        Filters(source=("wanda",), model=("llama-2-7b",), metric=("perplexity",), pattern=("2:4",))
    )
    assert {row.printed for row in found if row.metric == "ppl_wikitext2"} == {"54.59", "10.17", "11.02"}
    assert select(Filters(model=("bloom-1b1",), every=True)) == select(
        Filters(model=("bloom-1.1b",), every=True)
    )
    assert len(select(Filters(table=("table1",), source=("2301.00774",)))) == 42
    assert len(select(Filters(every=True))) == 2474
    assert select(Filters(method=("slicegpt",), pattern=("2:4",))) == []
    with pytest.raises(UserError, match="did you mean 'llama-2-7b'"):
        select(Filters(model=("lama-2-7b",)))
    with pytest.raises(UserError, match="'50' is no share"):
        select(Filters(sparsity=("50",)))


def test_every_figure_is_in_a_recipe_or_left_out_with_its_reason() -> None:
    met: set[int] = set()
    for recipe in recipes().values():
        given = sum(step.figures for step in recipe.steps)
        omitted = sum(omission.figures for omission in recipe.omissions)
        assert given + omitted == len(recipe.rows), recipe.name
        assert given == sum(not isinstance(request(row), str) for row in recipe.rows), recipe.name
        assert all(omission.reason for omission in recipe.omissions)
        met |= {row.line for row in recipe.rows}
    assert met == {row.line for row in figures()}
    tables = {(row.source, row.table) for row in figures()}
    assert {(r.source.id, table) for r in recipes().values() for table in r.tables} == tables
