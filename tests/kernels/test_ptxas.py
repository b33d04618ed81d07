"""The figures that the CUDA assembler gives of our kernels, as kept and as found."""

from __future__ import annotations

import json
import shutil

import ptxas
import pytest

SAID = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Zsmall' for 'sm_90'
ptxas info    : Function properties for _Zsmall
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 38 registers, used 1 barriers, 512 bytes smem
ptxas info    : Compiling entry function '_Zlarge' for 'sm_90'
ptxas info    : Function properties for _Zlarge
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers
"""


def test_the_figures_are_read_from_what_the_assembler_says() -> None:
    assert ptxas.parse(SAID) == {
        "sm_90": {
            "_Zsmall": {"registers": 38, "shared": 512, "stack": 0, "spills": 0},
            "_Zlarge": {"registers": 255, "shared": 0, "stack": 16, "spills": 20},
        }
    }


def test_a_spill_and_a_changed_figure_are_named() -> None:
    found = ptxas.parse(SAID)
    assert ptxas.differences(found, found) == ["sm_90 _Zlarge: spills 20 bytes"]
    kept = {
        "sm_90": {**found["sm_90"], "_Zsmall": {**found["sm_90"]["_Zsmall"], "registers": 36}, "_Zgone": {}}
    }
    lines = ptxas.differences(kept, found)
    assert len(lines) == 3
    assert "_Zgone: kept {}, found None" in lines[0]
    assert "_Zsmall" in lines[2]
    assert "'registers': 36" in lines[2]


def test_no_kept_kernel_spills_on_any_architecture() -> None:
    kept = json.loads(ptxas.KEPT.read_text(encoding="utf-8"))["figures"]
    assert set(kept) == {f"sm_{number}" for number in ptxas.ARCHITECTURES}
    for architecture, kernels in kept.items():
        assert len(kernels) == 16, architecture
        assert all(figures["spills"] == figures["stack"] == 0 for figures in kernels.values()), architecture


@pytest.mark.slow
def test_the_kernels_compile_to_the_kept_figures() -> None:
    nvcc = shutil.which("nvcc")
    kept = json.loads(ptxas.KEPT.read_text(encoding="utf-8"))
    if nvcc is None or ptxas.compiler_version(nvcc) != kept["nvcc"]:
        pytest.skip(f"needs nvcc {kept['nvcc']}, whose figures are kept")
    assert ptxas.differences(kept["figures"], ptxas.measure(nvcc, ("90",))) == []
