"""A run as a list of cells, each of them a frozen value of strings and numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.plan.formats import sparse_formats
from bench.plan.grammar import DENSE_METHOD, Value, nearest, shown, typed
from bench.plan.machine import available_threads
from bench.plan.placement import AS_IT_COMES, Placement
from bench.plan.settings import Settings
from methods.errors import CheckpointError, UserError
from methods.target import DENSE, Target

if TYPE_CHECKING:
    from bench.text.protocols import CalibrationProtocol, EvaluationProtocol, Protocol
    from methods.entries import Method
    from methods.interface import ModelShape, Pruner
    from methods.recover.spelling import RecoverySpelling
    from methods.spelling import Spelling

__all__ = [
    "NEW_TOKENS",
    "PROMPT_TOKENS",
    "Cell",
    "Plan",
    "Refusal",
    "config_of",
    "expand",
]

PROMPT_TOKENS = 128
"""Tokens of the prompt that decoding starts from."""
NEW_TOKENS = 64
"""Tokens decoded after it, the one that the prefill gives included."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One model under one method at one target: all that its figures depend on, beside the files themselves.

    What a method does not use stands at its default, so that equal work has equal cells: where nothing is
    calibrated, ``seed`` and ``calibration`` are None, ``hessian_dtype`` float32 and ``schedule`` sequential.
    """

    model: str
    method: str
    """Canonical ``rule[@allocation][+refinement]``, or ``dense``."""
    parameters: tuple[tuple[str, Value], ...]
    """Every declared parameter of the method with its value, defaults included, sorted by name: the rule's by
    plain name, those of its allocation, refinements and recovery as ``owl.lambda``."""
    target: str
    seed: int | None
    dtype: str
    device: str
    hessian_dtype: str
    schedule: str
    calibration: CalibrationProtocol | None
    evaluation: EvaluationProtocol
    evaluations: tuple[str, ...]
    """What is measured after pruning, such as ``perplexity``."""
    threads: int
    hidden_budget: int
    """Bytes of hidden states kept in memory; changes speed, never figures."""
    data_dir: str
    """Folder of texts, or an empty string."""
    heldout: CalibrationProtocol | None = None
    """Calibration half whose held-out text the reconstruction errors are measured on; None when dense."""
    tasks: tuple[str, ...] = ()
    """Zero-shot tasks and suites as ``--tasks`` spells them, sorted; none where nothing is measured on them."""
    limit: int = 0
    """Items of each task, from its start; 0 is all."""
    shots: int = 0
    """Solved examples in front of every item of a task."""
    packed: bool = False
    """Whether tasks are scored through packed linears; accuracy differs by rounding only."""
    layers: str = ""
    """Canonical spelling of the matrices worked on (see ``methods.selection``); empty is all."""
    recovery: str = ""
    """What trains the model afterwards, as ``lora`` or ``4xfull`` (see ``methods.recover.spelling``); empty is one shot."""
    calibration_workers: int = 1
    """Processes that share its calibration windows; more than one change figures by rounding."""
    placement: Placement = AS_IT_COMES
    """Where its work lies in memory; see ``bench.plan.budget``."""

    @property
    def name(self) -> str:
        """One line for people: ``nano-opt sparsegpt 50% seed 0``."""
        if self.method == DENSE_METHOD:
            return f"{self.model} dense"
        seed = "" if self.seed is None else f" seed {self.seed}"
        layers = f" {self.layers}" if self.layers else ""
        recovery = f" with {self.recovery}" if self.recovery else ""
        return f"{self.model} {self.method} {self.target}{layers}{recovery}{seed}"

    def protocol(self, phase: str) -> str:
        """Evaluation protocol id of a phase: only equal ids share a column. Empty for the prune itself."""
        if phase == "zeroshot":
            changes = [f"{key}={getattr(self, key)}" for key in ("shots", "limit") if getattr(self, key)]
            return f"zeroshot/{','.join(self.tasks)}" + (f"@{','.join(changes)}" if changes else "")
        if phase == "decode":
            return f"decode/{PROMPT_TOKENS}+{NEW_TOKENS}"
        if phase.startswith("save/"):
            return phase
        return self.evaluation.id if phase == "perplexity" else ""

    @property
    def dense(self) -> bool:
        """Whether this is the unpruned model."""
        return self.method == DENSE_METHOD

    def recorded(self) -> dict[str, Any]:
        """Parameters as its records state them: the method's, and those of the run that are not at their defaults."""
        from methods import registry

        if self.dense:
            return {}
        found = {
            **registry.recorded(self.method, dict(self.parameters)),
            "schedule": self.schedule,
            "hessian_dtype": self.hessian_dtype,
        }
        if self.layers:
            found["layers"] = self.layers
        if self.recovery:
            found["recovery"] = self.recovery
        if self.calibration_workers > 1:
            found["calibration_workers"] = self.calibration_workers
        return found


@dataclass(frozen=True, slots=True)
class Refusal:
    """A cell that cannot run, and why, in one line."""

    cell: Cell
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Cells to run, in order, and those refused before any work."""

    cells: tuple[Cell, ...]
    refusals: tuple[Refusal, ...]
    settings: Settings

    def refuse(self, reasons: Mapping[Cell, str]) -> Plan:
        """The same plan with these cells moved to the refusals."""
        more = tuple(Refusal(cell, reasons[cell]) for cell in self.cells if cell in reasons)
        return replace(
            self, cells=tuple(c for c in self.cells if c not in reasons), refusals=(*self.refusals, *more)
        )


@dataclass(frozen=True, slots=True)
class _Method:
    name: str
    targets: tuple[Target, ...]
    parameters: tuple[tuple[str, Value], ...]
    pruner: Pruner
    scheduled: bool
    recovery: str = ""


def expand(settings: Settings) -> Plan:
    """Cells of a run: for each model the dense one first, then methods x targets x seeds.

    A method without calibration runs once for all seeds. Looks at configs and for text files only: no weights,
    no network. Cells of a ``path:`` model whose config is none are refused, and the other models go on.
    Raises UserError for an unknown model, method, parameter, protocol or device, a missing data folder, or
    where no model has a config.
    """
    if settings.data_dir is not None and not settings.data_dir.is_dir():
        raise UserError(
            f"--data-dir '{shown(settings.data_dir)}' is no folder; give one that holds the texts"
        )
    chosen = _methods(settings)
    if settings.ray_address is not None:  # on a node a cell that asks for a GPU sees the one that it got
        device = "cpu" if settings.device in ("auto", "cpu") else "cuda:0"
    else:
        device = _device(settings.device, elsewhere=settings.rates is not None)
    if settings.packed and device != "cpu":
        raise UserError(
            f"--packed scores through kernels for CPUs, and the device is {device}; add --device cpu"
        )
    cells: list[Cell] = []
    refusals: list[Refusal] = []
    broken: list[str] = []
    models = _models(settings)
    for model in models:
        config, shape, fault = _config(model)
        if shape is None:
            broken.append(fault)
        dtype = _dtype(settings.dtype, device, config)
        for cell, method in _of_model(settings, model, chosen, dtype, device):
            reason = fault if shape is None else _refusal(cell, method, shape)
            if reason is None:
                cells.append(cell)
            else:
                refusals.append(Refusal(cell, reason))
    if len(broken) == len(models):
        raise UserError(broken[0])
    return Plan(tuple(cells), tuple(refusals), settings)


def _models(settings: Settings) -> list[str]:
    from bench.models import registry

    if not settings.models:
        raise UserError("no models given; try: bench run --models nano-*  (bench list models shows all)")
    return registry.match(settings.models)


def _methods(settings: Settings) -> list[_Method]:
    """Each method once, shorthands spelled out, with its parameters. Raises UserError for an unknown name."""
    from methods import registry

    texts = {text: registry.spelling(text) for text in settings.methods if text != DENSE_METHOD}
    recoveries = _recoveries(settings, bool(texts))
    named = {DENSE_METHOD} if DENSE_METHOD in settings.methods else set()
    named.update(recovery.kind for recovery in recoveries if recovery)
    for parts in texts.values():
        named.update(_owners(parts))
    given: dict[tuple[str, str], Value] = {}
    for owner, name, value in settings.assignments:
        if owner not in named:
            raise UserError(_misplaced(owner, name, named))
        given[owner, name] = typed(owner, name, value, registry.parameters_of(owner))
    chosen: dict[tuple[object, ...], _Method] = {}
    for text, parts in texts.items():
        entry = registry.method(parts.rule)
        targets = settings.targets(entry.default_target, entry.targets)
        if not targets:
            raise UserError(_aimless(entry, settings))
        layers = settings.layers if entry.layerwise else ""
        for recovery in recoveries:
            spelled = str(recovery)
            parameters: dict[str, Value] = {}
            for key, parameter in registry.declared(text, spelled).items():
                owner, _, name = key.rpartition(".")
                parameters[key] = given.get((owner or parts.rule, name), parameter.default)
            made = tuple(sorted(parameters.items()))
            pruner = registry.get(str(parts), parameters, layers, spelled)
            scheduled = entry.scheduled and registry.calibrated(str(parts))
            found = _Method(str(parts), targets, made, pruner, scheduled, spelled)
            chosen.setdefault((parts, made, recovery), found)
    _check_used(settings, list(chosen.values()))
    return list(chosen.values())


def _recoveries(settings: Settings, pruning: bool) -> list[RecoverySpelling]:
    """What trains the pruned models. Raises UserError for an unknown name, or where nothing is pruned."""
    from methods import registry
    from methods.errors import nearest

    known = ("none", *registry.recoveries())
    for word in settings.recover:
        if word not in known:
            raise UserError(
                f"--recover '{shown(word)}' is unknown; use {', '.join(known)}{nearest(word, known)}"
            )
    found = [registry.recovery(spelled) for spelled in settings.recoveries()]
    if any(found) and not pruning:
        raise UserError(
            f"--recover {','.join(settings.recover)} trains pruned models, and --methods has only dense; "
            "add a method, or leave --recover out"
        )
    return found


def _aimless(entry: Method, settings: Settings) -> str:
    """Only targets that a method cannot reach were asked for."""
    given = " and ".join(f"--{option}" for option in settings.asked())
    meant = "--slicing 0.25" if "slice" in entry.targets else "--sparsity 0.5 or --pattern 2:4"
    return f"{given} gives {entry.name} no target; add {meant}, or leave {entry.name} out of --methods"


def _check_used(settings: Settings, chosen: list[_Method]) -> None:
    """Raises UserError for an option whose targets no method takes: nothing asked for is dropped silently."""
    taken = {str(target).partition("+")[0] for method in chosen for target in method.targets}
    for option, words in settings.asked().items():
        if chosen and not taken.intersection(words):
            names = ", ".join(method.name for method in chosen)
            raise UserError(
                f"--{option} {','.join(words)} is for none of the methods run: {names}; leave it out"
            )


def _owners(parts: Spelling) -> list[str]:
    """The names behind ``--set`` that a spelling answers to."""
    return [part for part in (parts.rule, parts.allocation, *parts.refinements) if part]


def _misplaced(owner: str, name: str, named: set[str]) -> str:
    """Why ``--set owner.name`` sets nothing in this run."""
    from methods import registry

    short = registry.shorthands().get(owner)
    if short is not None and set(_owners(registry.spelling(short.spelling))) <= named:
        owners = _owners(registry.spelling(short.spelling))
        right = next((part for part in owners if name in registry.parameters_of(part)), owners[0])
        return (
            f"--set {owner}.{name}: {owner} is short for {short.spelling}; write --set {right}.{shown(name)}"
        )
    if owner in registry.recoveries():
        return f"--set {owner}.{shown(name)} is for a recovery not run; add --recover {owner}"
    return (
        f"--set {owner}.{name} is for a method not run; --methods has {', '.join(sorted(named))}"
        f"{nearest(owner, named)}"
    )


def _config(model: str) -> tuple[Mapping[str, Any], ModelShape | None, str]:
    """A model's config and sizes; or no sizes, and what is wrong with its folder."""
    try:
        return *config_of(model), ""
    except (UserError, CheckpointError) as error:
        return {}, None, str(error)


def _refusal(cell: Cell, method: _Method | None, shape: ModelShape) -> str | None:
    from bench.plan.texts import unreadable

    reason = (_unselectable(cell) or _unshared(cell, method)) if method is not None else None
    if method is not None and reason is None:
        reason = method.pruner.refuse(shape, Target.parse(cell.target))
    return reason or unreadable(cell, shape.positions)


def _unselectable(cell: Cell) -> str | None:
    """Why a method takes no selection of matrices, or None."""
    from methods import registry

    rule = registry.spelling(cell.method).rule
    if not cell.layers or registry.method(rule).layerwise:
        return None
    return f"{rule} is not layer-wise and works on whole blocks; leave out --layers {cell.layers}"


def _unshared(cell: Cell, method: _Method) -> str | None:
    """Why a method's calibration cannot be shared out, or None."""
    if cell.calibration_workers == 1 or getattr(method.pruner, "shares_calibration", False):
        return None
    who = f"--recover {cell.recovery}" if cell.recovery else cell.method
    return f"{who} works in one process; leave out --calibration-workers {cell.calibration_workers}"


def _of_model(
    settings: Settings, model: str, methods: list[_Method], dtype: str, device: str
) -> Iterator[tuple[Cell, _Method | None]]:
    """A model's cells with their methods, the dense one (and no method) first."""
    dense = _dense(settings, model, dtype, device)
    yield dense, None
    for method in methods:
        for target in method.targets:
            if target != DENSE:
                for cell in _seeded(settings, dense, method, target):
                    yield cell, method


def _dense(settings: Settings, model: str, dtype: str, device: str) -> Cell:
    protocol = _protocol(settings, model)
    return Cell(
        model=model,
        method=DENSE_METHOD,
        parameters=(),
        target=str(DENSE),
        seed=None,
        dtype=dtype,
        device=device,
        hessian_dtype="float32",
        schedule="sequential",
        calibration=None,
        evaluation=protocol.evaluation,
        evaluations=settings.evaluations,
        threads=settings.threads or available_threads(),
        hidden_budget=settings.hidden_budget,
        data_dir=str(settings.data_dir.resolve()) if settings.data_dir is not None else "",
        tasks=_tasks(settings, protocol.name) if "zeroshot" in settings.evaluations else (),
        limit=(settings.limit or 0) if "zeroshot" in settings.evaluations else 0,
        shots=(settings.shots or 0) if "zeroshot" in settings.evaluations else 0,
    )


def _tasks(settings: Settings, protocol: str) -> tuple[str, ...]:
    """The zero-shot tasks asked for, or the protocol's."""
    from bench.plan.suites import KJV, STANDARD

    return tuple(sorted(settings.tasks or (KJV if protocol == "nano" else STANDARD)))


def _seeded(settings: Settings, dense: Cell, method: _Method, target: Target) -> Iterator[Cell]:
    """The cells of one method and target: one per seed, or one for all where nothing is drawn."""
    calibration = _protocol(settings, dense.model).calibration
    cell = replace(
        dense,
        method=method.name,
        parameters=_used(method, target),
        target=str(target),
        heldout=calibration,
        layers=settings.layers,
        recovery=method.recovery,
        packed=settings.packed and "zeroshot" in settings.evaluations and bool(sparse_formats(str(target))),
    )
    if not method.pruner.needs_calibration:
        yield cell
        return
    for seed in settings.seeds:
        yield replace(
            cell,
            seed=seed,
            calibration=calibration,
            calibration_workers=settings.calibration_workers,
            hessian_dtype=settings.hessian_dtype if method.scheduled else cell.hessian_dtype,
            schedule=settings.schedule if method.scheduled else cell.schedule,
        )


def _used(method: _Method, target: Target) -> tuple[tuple[str, Value], ...]:
    """A method's parameters without those of grids where the target has none: equal work has equal cells."""
    from methods import registry

    known = registry.declared(method.name, method.recovery)
    return tuple((key, value) for key, value in method.parameters if target.bits or not known[key].grids)


def config_of(model: str) -> tuple[Mapping[str, Any], ModelShape]:
    """A model's config and sizes, from the registry or its folder.

    Raises UserError for a missing folder or another architecture, CheckpointError for a config that is none.
    """
    from bench.models import registry

    if registry.is_path(model):
        from bench.models.path import read_config

        folder = Path(model.removeprefix(registry.PATH_PREFIX))
        if not folder.is_dir():
            raise UserError(f"'{shown(model)}' is no folder; path: takes one with a config.json")
        return read_config(folder)
    from methods.families import shape_of

    config = registry.get(model).config
    return config, shape_of(config)


def _protocol(settings: Settings, model: str) -> Protocol:
    """The standard protocol asked for (packaged models: nano, others: lab), with the user's changes."""
    from bench.models import registry
    from bench.text.protocols import standard

    packaged = not registry.is_path(model) and registry.get(model).source == "packaged"
    default = "nano" if packaged else "lab"
    changes = {
        "calibration": settings.calibration,
        "samples": settings.samples,
        "calibration_length": settings.length,
        "length": settings.eval_length,
        "windows": settings.windows,
    }
    given = {key: value for key, value in changes.items() if value is not None}
    return standard(settings.protocol or default, settings.text, **given)


def _device(asked: str, *, elsewhere: bool = False) -> str:
    """``cpu`` or ``cuda:N``; of another machine the GPU where not told. Raises UserError for one that is not there."""
    if asked == "cpu":
        return asked
    if elsewhere:
        return asked if ":" in asked else "cuda:0"
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "auto":
        return "cuda:0" if count else "cpu"
    index = int(asked.partition(":")[2] or 0)
    if index >= count:
        has = f"has {count}, numbered from 0" if count else "has no GPU that torch can use"
        raise UserError(f"--device {asked}: this machine {has}; use --device cpu")
    return f"cuda:{index}"


def _dtype(asked: str, device: str, config: Mapping[str, Any]) -> str:
    """The compute dtype: on a CPU float32, on a GPU what the checkpoint was published in."""
    if asked != "auto":
        return asked
    published = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return published if device != "cpu" and published in ("float16", "bfloat16") else "float32"
