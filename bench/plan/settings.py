"""Everything that `bench run` can be told, from flags and a YAML file; flags win."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from bench.plan.config_file import read_config
from bench.plan.grammar import (
    Value,
    nearest,
    parse_bits,
    parse_list,
    parse_parameter,
    parse_pattern,
    parse_seed,
    parse_share,
    parse_size,
    parse_sparsity,
    shown,
    unique,
)
from bench.plan.mirroring import Entity, Mode, Project, Tags
from bench.plan.rates import Elsewhere, parse_rates
from bench.plan.saving import FORMS
from bench.results.remote import is_url, place
from methods.errors import UserError
from methods.recover.spelling import MOST_STAGES
from methods.selection import Selection
from methods.spelling import parse
from methods.target import DENSE, Target

__all__ = ["Assignment", "Settings", "gather", "option_name", "option_names", "out_folder"]

Assignment = tuple[str, str, Value]
"""One ``--set``: rule, parameter, value as typed (text from a flag, text or a number from YAML)."""

_RENAMED = {
    "evaluations": "eval",
    "assignments": "set",
    "as_json": "json",
    "fewer_params": "params",
    "fewer_bytes": "bytes",
}
_DEVICE = ("auto", "cpu", "cuda")


def option_name(field: str) -> str:
    """The option, without dashes in front, that sets a field: ``hessian_dtype`` is ``hessian-dtype``."""
    return _RENAMED.get(field, field.replace("_", "-"))


def _words(option: str) -> BeforeValidator:
    return BeforeValidator(lambda value: unique(parse_list(value, f"--{option}")))


def _methods(value: object) -> tuple[str, ...]:
    return unique(str(parse(word)) for word in parse_list(value, "--methods"))


def _sparsity(value: object) -> tuple[str, ...]:
    return unique(str(parse_sparsity(word)) for word in parse_list(value, "--sparsity"))


def _pattern(value: object) -> tuple[str, ...]:
    return unique(str(parse_pattern(word) or "unstructured") for word in parse_list(value, "--pattern"))


def _shares(option: str, kind: str) -> BeforeValidator:
    return BeforeValidator(
        lambda value: unique(str(parse_share(word, kind)) for word in parse_list(value, f"--{option}"))
    )


def _bits(value: object) -> tuple[str, ...]:
    return unique(str(parse_bits(word) or "none") for word in parse_list(value, "--bits"))


def _layers(value: object) -> str:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise UserError(f"--layers is '{shown(value)}'; write clauses such as blocks=0-3,only=mlp")
    return str(Selection.parse(",".join(words)))


def _recover(value: object) -> tuple[str, ...]:
    """Names of recoveries as typed, ``none`` among them, looked up with the methods'."""
    words = unique(word.lower() for word in parse_list(value, "--recover"))
    for word in words:
        if not word.replace("-", "").replace("_", "").isalnum() or word[0].isdigit():
            raise UserError(
                f"--recover '{shown(word)}' is no recovery; use none, lora or full; "
                "--gradual 4 spreads one over 4 stages"
            )
    return words


def _gradual(value: object) -> tuple[int, ...]:
    words = parse_list(value, "--gradual")
    for word in words:
        if not word.isascii() or not word.isdigit() or not 1 <= int(word) <= MOST_STAGES:
            raise UserError(
                f"--gradual has '{shown(word)}'; give numbers of stages, 1 (one pruning) to {MOST_STAGES}"
            )
    return tuple(dict.fromkeys(int(word) for word in words))


def _seeds(value: object) -> tuple[int, ...]:
    return tuple(dict.fromkeys(parse_seed(word) for word in parse_list(value, "--seeds")))


def _assignments(value: object) -> tuple[Assignment, ...]:
    """Texts ``rule.name=value``, or a YAML mapping, flat (``rule.name: value``) or nested; the last wins."""
    found: dict[tuple[str, str], Value] = {}
    for rule, name, read in _flat(value) if isinstance(value, Mapping) else _split(value):
        found[rule, name] = read
    return tuple((rule, name, read) for (rule, name), read in sorted(found.items()))


def _split(value: object) -> list[Assignment]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        raise UserError(f"--set is '{shown(value)}'; write method.parameter=value")
    return [text if isinstance(text, tuple) else parse_parameter(str(text)) for text in texts]


def _flat(value: Mapping[Any, Any]) -> list[Assignment]:
    found: list[Assignment] = []
    for key, inner in value.items():
        nested = isinstance(inner, Mapping)
        pairs = {f"{key}.{name}": read for name, read in inner.items()} if nested else {str(key): inner}
        for spelled, read in pairs.items():
            if not isinstance(read, str | int | float):
                raise UserError(f"set has '{shown(read)}' for '{shown(spelled)}'; give one word or number")
            found.append(
                parse_parameter(f"{spelled}={str(read).lower() if isinstance(read, bool) else read}")
            )
    return found


def _whole(option: str, least: int, most: int) -> BeforeValidator:
    def check(value: object) -> int | None:
        if value is None:
            return None
        text = str(value).strip()
        if isinstance(value, bool | float) or not text.isascii() or not text.isdigit() or len(text) > 18:
            raise UserError(f"--{option} is '{shown(value)}'; use a whole number, {least} at least")
        if not least <= int(text) <= most:
            raise UserError(f"--{option} is {text}; use {least} to {most}")
        return int(text)

    return BeforeValidator(check)


def _choice(option: str, *allowed: str) -> BeforeValidator:
    def check(value: object) -> str:
        word = str(value).strip().lower()
        if word not in allowed:
            raise UserError(
                f"--{option} '{shown(value)}' is unknown; use {', '.join(allowed)}{nearest(word, allowed)}"
            )
        return word

    return BeforeValidator(check)


def _device(value: object) -> str:
    word = str(value).strip().lower()
    kind, colon, index = word.partition(":")
    numbered = kind == "cuda" and index.isascii() and index.isdigit() and len(index) < 4
    if not (numbered if colon else word in _DEVICE):
        near = nearest(kind, _DEVICE)
        raise UserError(f"--device '{shown(value)}' is unknown; use {', '.join(_DEVICE)} or cuda:0{near}")
    return word


def _forms(value: object) -> tuple[str, ...]:
    words = unique(word.lower() for word in parse_list(value, "--save-as"))
    for word in words:
        if word not in FORMS:
            raise UserError(
                f"--save-as '{shown(word)}' is unknown; use {', '.join(FORMS)}{nearest(word, FORMS)}; sliced models are "
                "always kept as they are"
            )
    return words


def _flag(option: str) -> BeforeValidator:
    def check(value: object) -> bool:
        if not isinstance(value, bool):
            raise UserError(f"{option} is '{shown(value)}'; write true or false")
        return value

    return BeforeValidator(check)


def _bytes(option: str) -> BeforeValidator:
    return BeforeValidator(lambda value: parse_size(str(value), f"--{option}"))


def _name(option: str) -> BeforeValidator:
    def check(value: object) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"--{option} is '{shown(value)}'; give one name")
        return value.strip()

    return BeforeValidator(check)


def _folder(value: object, option: str) -> Path:
    if not isinstance(value, str | Path) or not str(value).strip() or "\0" in str(value):
        raise UserError(f"--{option} is '{shown(value)}'; give a folder")
    if is_url(value):
        raise UserError(f"--{option} '{shown(value)}' is a URL; copy it to this machine and give the folder")
    return Path(value).expanduser()


def _path(option: str) -> BeforeValidator:
    return BeforeValidator(lambda value: None if value is None else _folder(value, option))


def out_folder(value: object) -> Path:
    """What --out names: a folder, or the spool of a URL. Raises UserError for what is neither, MachineError."""
    return place(value) if isinstance(value, str) and is_url(value) else _folder(value, "out")


class Settings(BaseModel):
    """One run, completely: every option of `bench run`, checked for form, not yet against the machine."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=option_name, populate_by_name=True)

    models: Annotated[tuple[str, ...], _words("models")] = ()
    """Ids, globs and ``path:`` folders, as typed."""
    methods: Annotated[tuple[str, ...], BeforeValidator(_methods)] = ("magnitude", "sparsegpt")
    """Canonical spellings."""
    sparsity: Annotated[tuple[str, ...], BeforeValidator(_sparsity)] = ()
    """Unstructured targets, as ``50%``."""
    pattern: Annotated[tuple[str, ...], BeforeValidator(_pattern)] = ()
    """``unstructured`` and N:M patterns."""
    slicing: Annotated[tuple[str, ...], _shares("slicing", "slice")] = ()
    """Shares of the width, as ``slice25%``."""
    fewer_params: Annotated[tuple[str, ...], _shares("params", "params")] = ()
    """Shares of the parameters to save, as ``params-20%``."""
    fewer_bytes: Annotated[tuple[str, ...], _shares("bytes", "bytes")] = ()
    """Shares of the bytes to save, as ``bytes-30%``."""
    bits: Annotated[tuple[str, ...], BeforeValidator(_bits)] = ()
    """Widths of the grid that goes with every target; ``none`` is the target alone."""
    layers: Annotated[str, BeforeValidator(_layers)] = ""
    """Canonical spelling of the matrices to work on; all where empty."""
    recover: Annotated[tuple[str, ...], BeforeValidator(_recover)] = ("none",)
    """What trains the pruned models, each by itself; ``none`` is one shot."""
    gradual: Annotated[tuple[int, ...], BeforeValidator(_gradual)] = (1,)
    """Stages of pruning and training; 1 is a single pruning."""
    seeds: Annotated[tuple[int, ...], BeforeValidator(_seeds)] = (0,)
    calibration: Annotated[str | None, _name("calibration")] = None
    samples: Annotated[int | None, _whole("samples", 1, 1_000_000)] = None
    length: Annotated[int | None, _whole("length", 0, 1_000_000)] = None
    protocol: Annotated[str | None, _name("protocol")] = None
    text: Annotated[str | None, _name("text")] = None
    eval_length: Annotated[int | None, _whole("eval-length", 0, 1_000_000)] = None
    """Tokens of an evaluation window; 0 is the model's context."""
    windows: Annotated[int | None, _whole("windows", 0, 10_000_000)] = None
    evaluations: Annotated[tuple[str, ...], _words("eval")] = ("perplexity",)
    tasks: Annotated[tuple[str, ...], _words("tasks")] = ()
    """Zero-shot tasks by the names of lm-evaluation-harness, and suites as ``suite:wanda``; the protocol's where empty."""
    shots: Annotated[int | None, _whole("shots", 0, 100)] = None
    """Solved examples in front of every item; none where None."""
    packed: Annotated[bool, _flag("packed")] = False
    """Whether zero-shot tasks are scored through packed linears where weights were removed."""
    limit: Annotated[int | None, _whole("limit", 1, 10_000_000)] = None
    """Items of each task, from its start; all where None."""
    device: Annotated[str, BeforeValidator(_device)] = "auto"
    dtype: Annotated[str, _choice("dtype", "auto", "float32", "bfloat16", "float16")] = "auto"
    hessian_dtype: Annotated[str, _choice("hessian-dtype", "float32", "float64")] = "float32"
    schedule: Annotated[str, _choice("schedule", "sequential", "blockwise")] = "sequential"
    threads: Annotated[int | None, _whole("threads", 1, 4096)] = None
    hidden_budget: Annotated[int, _bytes("hidden-budget")] = 2 << 30
    """Bytes of hidden states kept in memory."""
    memory_budget: Annotated[int, _bytes("memory-budget")] = 0
    """Bytes that a cell's peak must keep within; 0 is what the machine has."""
    rates: Annotated[Elsewhere | None, BeforeValidator(parse_rates)] = None
    """The machine that ``dry_run`` plans for, where it is not this one."""
    assignments: Annotated[tuple[Assignment, ...], BeforeValidator(_assignments)] = ()
    save: Annotated[bool, _flag("save")] = False
    save_as: Annotated[tuple[str, ...], BeforeValidator(_forms)] = ()
    """Forms to keep pruned models in; see ``saved``."""
    executor: Annotated[str, _choice("executor", "local", "ray")] = "local"
    """Where cells run: in this process, or on the nodes of a Ray cluster. Changes no figure."""
    ray_address: Annotated[str | None, _name("ray-address")] = None
    """HOST:PORT of a cluster, or ``auto``; one of this machine, for this run, where None."""
    calibration_workers: Annotated[int, _whole("calibration-workers", 1, 4096)] = 1
    """Processes of the cluster that share the calibration windows of a cell; more than one change figures by rounding."""
    out: Annotated[Path, BeforeValidator(out_folder)] = Path("bench-out")
    data_dir: Annotated[Path | None, _path("data-dir")] = None
    wandb: Mode = "off"
    """Whether finished records are mirrored as W&B runs, and uploaded."""
    wandb_project: Project = None
    wandb_entity: Entity = None
    wandb_tags: Tags = None
    yes: Annotated[bool, _flag("yes")] = False
    force: Annotated[bool, _flag("force")] = False
    dry_run: Annotated[bool, _flag("dry-run")] = False
    quiet: Annotated[bool, _flag("quiet")] = False
    as_json: Annotated[bool, _flag("json")] = False
    command: tuple[str, ...] = Field(default=(), exclude=True)
    """The words typed, so that a message can say how to resume."""

    @model_validator(mode="after")
    def _grids_to_pack(self) -> Settings:
        if "quantised" in self.save_as and not set(self.bits) - {"none"}:
            raise UserError(
                "--save-as quantised packs weights on grids, and --bits joins no grid to any target; add --bits 4, or leave "
                "quantised out"
            )
        return self

    @model_validator(mode="after")
    def _planned_only(self) -> Settings:
        if self.rates is not None and not self.dry_run:
            raise UserError("--rates plans for another machine, which no run is on; add --dry-run")
        return self

    @model_validator(mode="after")
    def _ray_only(self) -> Settings:
        if self.ray_address is not None and self.executor != "ray":
            raise UserError(
                f"--ray-address {shown(self.ray_address)} is for Ray; add --executor ray, or leave it out"
            )
        if self.calibration_workers > 1 and self.executor != "ray":
            raise UserError(
                f"--calibration-workers {self.calibration_workers} are processes of a Ray cluster; add --executor ray, "
                "or leave it out"
            )
        return self

    @property
    def saved(self) -> tuple[str, ...]:
        """Forms to keep pruned models in: those of ``--save-as``, dense where there is ``--save`` alone."""
        return self.save_as or (("dense",) if self.save else ())

    def targets(
        self, default: str = "50%", kinds: Collection[str] = ("unstructured", "nm")
    ) -> tuple[Target, ...]:
        """What a method that reaches ``kinds`` of targets aims at, in the order asked for.

        Sizes (``params``, ``bytes``) are for every method. Every target is joined with every width of ``bits``.
        ``default`` where nothing is asked for at all; nothing where only other kinds are. Raises UserError where
        shares are given but only N:M patterns to apply them to.
        """
        if self.sparsity and self.pattern and "unstructured" not in self.pattern:
            raise UserError(
                f"--sparsity is for unstructured pruning, --pattern {','.join(self.pattern)} fixes its own; "
                f"leave --sparsity out, or write --pattern unstructured,{','.join(self.pattern)}"
            )
        asked = self.asked()
        if not asked:
            return self._joined([default])
        wanted = {*kinds, "params", "bytes"}
        spelled = [word for words in asked.values() for word in words]
        return tuple(
            target
            for target in self._joined(spelled)
            if (target.kind if target != DENSE else "unstructured") in wanted
        )

    def recoveries(self) -> tuple[str, ...]:
        """Spellings of the recoveries in every number of stages, one shot (empty) first where it is asked for.

        Raises UserError for a schedule of stages with nothing to train between them.
        """
        kinds = [word for word in self.recover if word != "none"]
        if any(stages > 1 for stages in self.gradual) and not kinds:
            raise UserError(
                f"--gradual {','.join(map(str, self.gradual))} has nothing to do between its stages; "
                "add --recover lora or --recover full"
            )
        spelled = [f"{stages}x{kind}" if stages > 1 else kind for kind in kinds for stages in self.gradual]
        return (*([""] if "none" in self.recover else []), *spelled)

    def asked(self) -> dict[str, tuple[str, ...]]:
        """Targets as spelled, by the option that asks for them."""
        found: dict[str, tuple[str, ...]] = {}
        shares = self.sparsity or (("50%",) if self.pattern else ())
        spelled: list[str] = []
        for pattern in self.pattern or ("unstructured",):
            spelled += shares if pattern == "unstructured" else (pattern,)
        options = {"slicing": self.slicing, "params": self.fewer_params, "bytes": self.fewer_bytes}
        found["sparsity" if self.sparsity else "pattern"] = tuple(spelled)
        return {option: words for option, words in (found | options).items() if words}

    def _joined(self, spelled: list[str]) -> tuple[Target, ...]:
        """Targets with the grids that go with them, each once."""
        ends = ["" if bits == "none" else f"+{bits}bit" for bits in self.bits or ("none",)]
        return tuple(Target.parse(word) for word in unique(word + end for word in spelled for end in ends))


def option_names() -> tuple[str, ...]:
    """Every key that a config file may hold."""
    return tuple(option_name(field) for field in Settings.model_fields if field != "command")


def gather(
    flags: Mapping[str, Any],
    config: Path | None = None,
    command: tuple[str, ...] = (),
    base: Mapping[str, Any] | None = None,
) -> Settings:
    """Settings from flags (None: not given) over a YAML file over ``BENCH_DATA_DIR`` and defaults.

    ``base``: what such a file would hold, for a run that is described elsewhere.

    Raises UserError, one line, for an unknown key or a value that is none.
    """
    values: dict[str, Any] = dict(base or {})
    for key, value in (read_config(config) if config is not None else {}).items():
        option = key.replace("_", "-")
        if option not in option_names():
            known = ", ".join(option_names())
            raise UserError(
                f"config '{shown(config)}' has the unknown key '{shown(key)}'"
                f"{nearest(option, option_names()) or f'; known: {known}'}"
            )
        if option in values:
            raise UserError(f"config '{shown(config)}' has the key '{option}' twice")
        if value is not None:
            values[option] = value
    file_set = values.get("set", {})
    values |= {option_name(field): value for field, value in flags.items() if value is not None}
    if flags.get("assignments") is not None and file_set:
        # The file's parameters stand unless a flag sets the same one: later entries win.
        values["set"] = [*_assignments(file_set), *_split(flags["assignments"])]
    if "data-dir" not in values and os.environ.get("BENCH_DATA_DIR"):
        values["data-dir"] = os.environ["BENCH_DATA_DIR"]
    try:
        return Settings.model_validate({**values, "command": command})
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(map(str, first["loc"]))
        raise UserError(f"--{option} is '{shown(first['input'])}'; {first['msg'].lower()}") from None
