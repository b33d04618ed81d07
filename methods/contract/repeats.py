"""The contract's third part: the same again, in another order, after a kill, with less memory."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.contract.checks import DyingSink, Killed, digests, global_state_untouched, outcome
from methods.contract.models import calibration
from methods.contract.setting import Setting
from methods.interface import Run
from methods.layerwise.pruner import LayerwisePruner
from methods.layerwise.rule import Problem, Solution
from methods.moments import Moments, Statistic

__all__ = ["RepeatContract"]


class RepeatContract(Setting):
    """Determinism, purity of rules, resume."""

    def test_same_seed_same_bits(self, tmp_path: Path, target: str) -> None:
        """Whatever the global random states are, equal runs give equal bits, and leave those states alone."""
        model, found = self.model(tmp_path), []
        for number in (1, 2):
            torch.manual_seed(number)
            random.seed(number)
            np.random.seed(number)  # noqa: NPY002 - the very state that must not matter
            out = tmp_path / str(number)
            with global_state_untouched():
                report = self.prune(model, out, target, seed=5)
            found.append((digests(out / "blocks"), outcome(report)))
        assert found[0] == found[1]

    def test_one_pruner_can_be_used_twice(self, tmp_path: Path) -> None:
        """Nothing of one run, or of another target's, is left in the pruner for the next."""
        model, pruner, aims = self.model(tmp_path), self.pruner(), self.aims()
        for name, target in (("first", aims[0]), ("between", aims[-1]), ("again", aims[0])):
            self.prune(model, tmp_path / name, target, pruner=pruner)
        assert digests(tmp_path / "first" / "blocks") == digests(tmp_path / "again" / "blocks")

    def test_order_of_matrices_is_irrelevant(
        self, tmp_path: Path, family: str, target: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A layer-wise method solves each matrix by itself: last first, alone, it gives the same bits."""
        pruner = self.pruner()
        if not isinstance(pruner, LayerwisePruner):
            pytest.skip("the method is not layer-wise")
        seen: list[tuple[Problem, Solution]] = []
        solve = LayerwisePruner.solve

        def noted(self: LayerwisePruner, problem: Problem) -> Solution:
            kept = replace(problem, weight=problem.weight.clone())
            solution = solve(self, problem)
            seen.append((kept, replace(solution, weight=solution.weight.clone())))
            return solution

        monkeypatch.setattr(LayerwisePruner, "solve", noted)
        self.prune(self.model(tmp_path, family), tmp_path, target, pruner=pruner)
        monkeypatch.undo()
        assert seen
        fresh, run = self.pruner(), Run()
        assert isinstance(fresh, LayerwisePruner)
        for problem, before in reversed(seen):
            generator = run.generator(problem.block, problem.matrix.name)
            again = solve(fresh, replace(problem, generator=generator))
            assert torch.equal(again.weight, before.weight), f"block {problem.block} {problem.matrix.name}"
            assert torch.equal(again.mask, before.mask)

    def test_a_rule_is_pure(
        self, tmp_path: Path, family: str, target: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A layer-wise method reads its moments and leaves them, draws from its generator, and tells its mask."""
        pruner = self.pruner()
        if not isinstance(pruner, LayerwisePruner):
            pytest.skip("the method is not layer-wise")
        solve = LayerwisePruner.solve

        def watched(self: LayerwisePruner, problem: Problem) -> Solution:
            where = f"block {problem.block} {problem.matrix.name}"
            before, shape = _Gathered.of(problem.moments), problem.weight.shape
            with global_state_untouched():
                solution = solve(self, problem)
            assert before == _Gathered.of(problem.moments), f"{where}: moments are shared and only read"
            assert solution.weight.shape == solution.mask.shape == shape, where
            assert solution.weight.dtype == torch.float32 and solution.mask.dtype == torch.bool, where
            assert int(solution.mask.sum()) == problem.budget.count(problem.matrix), (
                f"{where}: the mask removes {int(solution.mask.sum())}, the budget says "
                f"{problem.budget.count(problem.matrix)}"
            )
            assert not bool(solution.weight[solution.mask].any()), f"{where}: a removed weight is not zero"
            return solution

        monkeypatch.setattr(LayerwisePruner, "solve", watched)
        self.prune(self.model(tmp_path, family), tmp_path, target, pruner=pruner)

    def test_a_killed_run_goes_on(self, tmp_path: Path, family: str, schedule: str) -> None:
        """Killed at any block, a second run of the same identity ends with the bits of an uninterrupted one."""
        model, target = self.model(tmp_path, family), self.aims()[0]
        whole = self.prune(model, tmp_path / "whole", target, schedule=schedule)
        for survive, written in ((0, True), (1, False)):
            out = tmp_path / f"killed-{survive}"
            sink = DyingSink(out / "blocks", survive, written=written)
            with pytest.raises(Killed):
                self.prune(model, out, target, schedule=schedule, sink=sink)
            report = self.prune(model, out, target, schedule=schedule)
            assert digests(out / "blocks") == digests(tmp_path / "whole" / "blocks")
            assert outcome(report) == outcome(whole)

    def test_a_resume_point_of_another_run_is_not_used(self, tmp_path: Path) -> None:
        """What lies in the work folder counts only for the same identity."""
        target, model = self.aims()[0], self.model(tmp_path)
        self.prune(model, tmp_path, target, identity="another", seed=1, tokens=calibration(seed=8))
        report = self.prune(model, tmp_path, target)
        assert report.resumed_blocks == 0
        self.prune(model, tmp_path / "fresh", target)
        assert digests(tmp_path / "blocks") == digests(tmp_path / "fresh" / "blocks")

    def test_memory_for_states_changes_nothing(self, tmp_path: Path, schedule: str) -> None:
        """With all hidden states on disk the bits are the same."""
        model, target = self.model(tmp_path), self.aims()[0]
        for name, budget in (("memory", 1 << 30), ("disk", 0)):
            self.prune(model, tmp_path / name, target, schedule=schedule, hidden_budget=budget)
        assert digests(tmp_path / "memory" / "blocks") == digests(tmp_path / "disk" / "blocks")


@dataclass(frozen=True)
class _Gathered:
    """Copies of all that moments hold, equal bit for bit."""

    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, moments: Moments | None) -> _Gathered:
        found: dict[str, Tensor] = {}
        if moments is not None:
            if Statistic.GRAM in moments.needs:
                found["gram"] = moments.gram.matrix.clone()
            for statistic, name in (
                (Statistic.NORMS, "norms"), (Statistic.MEANS, "means"), (Statistic.VARIANCES, "variances"),
            ):  # fmt: skip
                if statistic in moments.needs:
                    found[name] = getattr(moments, name).clone()
        return cls(found)

    def __eq__(self, other: Any) -> bool:
        return set(self.tensors) == set(other.tensors) and all(
            torch.equal(tensor, other.tensors[name]) for name, tensor in self.tensors.items()
        )

    __hash__ = None  # type: ignore[assignment]
