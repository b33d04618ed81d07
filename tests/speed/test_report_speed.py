"""The report of large stores: seconds and memory to write it, seconds to open and to filter its results in a browser."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sample_records import cell

from bench.results.segments import Store

CHROMIUM = os.environ.get("BENCH_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
METHODS = ("magnitude", "sparsegpt", "wanda", "mixed", "slicegpt")
TARGETS = ("50%", "55%", "60%", "65%", "70%", "75%", "80%", "1:4", "2:4", "4:8")


def _filled(folder: Path, least: int) -> int:
    """A store of ``least`` records or a model's more: five methods, ten targets, three seeds; how many there are."""
    count = model = 0
    with Store(folder, create=True) as store:
        while count < least:
            entries = cell(f"model-{model}", "dense", "0%")
            for method in METHODS:
                for target in TARGETS:
                    for seed in (0,) if method == "magnitude" else (0, 1, 2):
                        entries += cell(f"model-{model}", method, target, seed=seed)
            for entry in entries:
                store.append(entry)
            count, model = count + len(entries), model + 1
    return count


@pytest.mark.timeout(900)
@pytest.mark.parametrize("least", [1_000, 50_000])
def test_report(benchmark: Any, tmp_path: Path, least: int) -> None:
    store = tmp_path / "store"
    records = _filled(store, least)
    command = [sys.executable, "-m", "bench", "report", "--out", str(store), "--format", "html"]
    used: list[tuple[float, int]] = []

    def written() -> None:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        used.append((usage.ru_utime + usage.ru_stime, usage.ru_maxrss >> 10))

    benchmark.pedantic(written, rounds=3 if least < 10_000 else 1, warmup_rounds=1 if least < 10_000 else 0)
    benchmark.extra_info.update(
        records=records, cpu_s=round(min(used)[0], 2), peak_mib=max(used, key=lambda pair: pair[1])[1]
    )
    if CHROMIUM is not None:
        benchmark.extra_info.update(_in_browser(store / "report" / "results.html"))
    print(f"\n{benchmark.name}: {benchmark.extra_info}")


def _in_browser(page: Path) -> dict[str, float]:
    """Seconds until the results can be used, and from the choice of a model until its rows alone are shown."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        tab = browser.new_page()
        began = time.perf_counter()
        tab.goto(page.as_uri(), wait_until="commit")
        tab.wait_for_function(
            "[...document.querySelectorAll('[data-explorer]')].length > 0 &&"
            "[...document.querySelectorAll('[data-explorer]')].every(place => place.dataset.ready)",
            timeout=120_000,
        )
        opened = time.perf_counter() - began
        choice = tab.get_by_role("combobox", name="Model").first
        began = time.perf_counter()
        choice.select_option("model-1")
        tab.wait_for_function(
            "document.querySelector('.dt-info').innerText.includes('(of ')", timeout=120_000
        )
        filtered = time.perf_counter() - began
        assert tab.locator(".explorer tbody tr").count() > 0
        browser.close()
    return {"open_s": round(opened, 2), "filter_s": round(filtered, 2)}
