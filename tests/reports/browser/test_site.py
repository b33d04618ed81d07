"""The written site in a browser: quiet, offline, accessible; sorting, filtering and links do what they say."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_records import HOSTILE, hostile_records

from bench.results.segments import Store
from reports.layout import Explorer, render
from reports.pages import write_report
from reports.tables import Shown, Table
from reports.wording import clean

playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install prune-bench[test]"
)
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")

CHROMIUM = os.environ.get("BENCH_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
STUDIES = Path(__file__).parents[3] / "studies"
PAGES = ("index.html", "results.html", "provenance.html")
ROWS = 50_000

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium: apt install chromium, or set BENCH_CHROMIUM"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of written reports: two kept studies, and a store whose texts are hostile."""
    folder = tmp_path_factory.mktemp("sites")
    with Store(folder / "store", create=True) as store:
        for entry in hostile_records():
            store.append(entry)
    return {
        name: write_report(out, folder / name).page.parent
        for name, out in (
            ("models", STUDIES / "nano-mixed"),
            ("kernels", STUDIES / "kernels"),
            ("hostile", folder / "store"),
        )
    }


class Visit:
    """A page opened from a file, with what it said on the console and asked for."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(f"dialog: {dialog.message}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_function(
            "[...document.querySelectorAll('script[data-chart]')].every("
            "source => document.getElementById(source.dataset.chart).childElementCount > 0)"
            " && [...document.querySelectorAll('[data-explorer]')].every(place => place.dataset.ready)"
        )

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def first(self, column: int) -> str:
        text: str = self.page.locator(".explorer tbody tr").first.locator("th, td").nth(column).inner_text()
        return text


@pytest.mark.parametrize("site", ["models", "kernels", "hostile"])
def test_pages_are_quiet_offline_and_fit_a_phone(browser: Any, sites: dict[str, Path], site: str) -> None:
    for name in PAGES:
        file = sites[site] / name
        phone = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}
        with Visit(browser, file, **phone) as visit:
            assert visit.said == []
            assert {url for url in visit.asked if not url.startswith("data:")} == {file.as_uri()}
            assert visit.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
            charts = visit.page.locator("script[data-chart]").count()
            assert visit.page.locator(".chart svg").count() == charts
            assert (charts > 0) == (name == "index.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Any, sites: dict[str, Path], scheme: str) -> None:
    checked = [("models", name) for name in PAGES] + [("kernels", "index.html")]
    for site, name in checked if scheme == "light" else checked[:2]:
        with Visit(browser, sites[site] / name, color_scheme=scheme) as visit:
            found = axe.Axe().run(visit.page)
            assert found.violations_count == 0, found.generate_report()


def test_tables_sort_by_mouse_and_keyboard(browser: Any, sites: dict[str, Path]) -> None:
    with Visit(browser, sites["models"] / "results.html") as visit:
        heading = visit.page.get_by_role("button", name=re.compile("^Perplexity"))
        heading.click()
        assert visit.first(0) == "nano-llama" and visit.first(1) == "dense"
        heading.press("Enter")
        assert visit.first(0) == "nano-opt" and visit.first(2) == "70%"
        assert visit.page.locator("th[aria-sort=descending]").count() == 1
    with Visit(browser, sites["models"] / "index.html") as visit:
        table = visit.page.locator("#group-1 table.sortable").first
        table.get_by_role("button", name=re.compile("^Perplexity")).click()
        values = [text.split(" ")[0] for text in table.locator("tbody td:nth-child(3)").all_inner_texts()]
        assert values == sorted(values, key=float) and len(values) > 3


def test_results_are_filtered_by_choice_and_by_word(browser: Any, sites: dict[str, Path]) -> None:
    with Visit(browser, sites["models"] / "results.html") as visit:
        visit.page.get_by_role("combobox", name="Model").select_option("nano-bloom")
        visit.page.get_by_role("combobox", name="Target").select_option("60%")
        assert visit.page.locator(".dt-info").inner_text() == "Rows 1 to 2 of 2 (of 21)"
        visit.page.get_by_label("Find:").fill("mixed")
        assert visit.page.locator(".dt-info").inner_text() == "Rows 1 to 1 of 1 (of 21)"
        assert (visit.first(0), visit.first(1)) == ("nano-bloom", "sparsegpt@mixed")


def test_links_lead_somewhere(browser: Any, sites: dict[str, Path]) -> None:
    with Visit(browser, sites["models"] / "index.html") as visit:
        page = visit.page
        missing = page.evaluate(
            "[...document.querySelectorAll('a[href^=\"#\"]')].filter("
            "link => !document.getElementById(link.hash.slice(1))).map(link => link.hash)"
        )
        assert missing == []
        page.get_by_role("link", name="All results").click()
        page.get_by_role("link", name="Provenance").click()
        assert page.get_by_role("heading", level=1).inner_text() == "Provenance"
        page.get_by_role("combobox", name="Method").select_option("dense")
        assert "bench run" in page.locator(".explorer tbody tr").first.inner_text()


def test_hostile_text_is_text_in_the_browser_too(browser: Any, sites: dict[str, Path]) -> None:
    with Visit(browser, sites["hostile"] / "results.html") as visit:
        visit.page.get_by_label("Find:").fill("alert(1)")
        options = visit.page.get_by_role("combobox", name="Model").locator("option").all_inner_texts()
        assert visit.page.locator(".explorer img, .explorer script, .choices img").count() == 0
        shown = " ".join(visit.page.locator(".explorer tbody th").all_inner_texts())
        assert HOSTILE[0] in shown and HOSTILE[1] in shown
        visit.page.get_by_role("combobox", name="Model").select_option(clean(HOSTILE[0]))
        assert visit.page.locator(".explorer tbody tr").count() == 2
        assert any(clean(HOSTILE[0]) == option for option in options) and visit.said == []


def test_without_scripts_the_rows_are_there(browser: Any, sites: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((sites["models"] / "results.html").as_uri())
    assert page.locator("table tbody tr").count() == 21
    context.close()


def test_fifty_thousand_rows_are_paged_and_filtered(browser: Any, tmp_path: Path) -> None:
    rows = tuple((f"model-{place % 50}", f"m{place}", Shown(f"{place} s", place)) for place in range(ROWS))
    table = Table("All results", ("Model", "Method", "Prune time"), rows, headers=2)
    file = tmp_path / "results.html"
    file.write_text(
        render("results.html.j2", title="t", tables=True, results=Explorer("results", table, ("Model",)))
    )
    with Visit(browser, file) as visit:
        visit.page.get_by_role("combobox", name="Model").select_option("model-7")
        assert visit.page.locator(".dt-info").inner_text() == "Rows 1 to 50 of 1,000 (of 50,000)"
        visit.page.get_by_role("button", name=re.compile("^Prune time")).dblclick()
        assert visit.page.locator(".explorer tbody tr").count() == 50
        assert visit.said == []
