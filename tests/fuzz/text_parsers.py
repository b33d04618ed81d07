"""Fuzzed: configs, what is typed on the command line, published figures, and evaluation texts."""

from __future__ import annotations

from fuzz.refusals import Finding, refusals, scratch, split

from bench.models import registry
from bench.plan import config_file, grammar, settings
from bench.plan.cells import expand
from bench.published import figures
from bench.text import documents, protocols
from methods import spelling
from methods.recover import spelling as recovery
from methods.selection import Selection
from methods.target import Target
from reports.compare.tolerances import DEFAULTS, tolerances


def config(data: bytes) -> None:
    """0: settings of a run and the plan they make; 1: tolerances of a comparison; 2: any YAML."""
    kind, body = split(data, 3)
    with scratch() as folder:
        path = folder / "c.yaml"
        path.write_bytes(body)
        with refusals():
            if kind == 0:
                gathered = settings.gather({}, path)
                if len(gathered.methods) * len(gathered.seeds or (0,)) < 30 and len(body) < 2000:
                    expand(gathered)
            elif kind == 1:
                given = config_file.read_config(path)
                with refusals(ValueError):
                    tolerances(config_file.read_config(DEFAULTS), given)
            else:
                _plain(config_file.read_config(path))


def _plain(value: object) -> None:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for entry in value:
            _plain(entry)
    elif not isinstance(value, str | int | float | bool | None):
        raise Finding(f"YAML gave a {type(value).__name__}")


def words(data: bytes) -> None:
    """What is typed: methods, targets, shares, sizes, seeds, parameters, layers, recoveries, models, texts."""
    kind, body = split(data, 13)
    text = body.decode("utf-8", "replace")
    with refusals():
        if kind in (0, 1, 2):
            parse = (spelling.parse, Target.parse, recovery.parse)[kind]
            found = parse(text)
            if parse(str(found)) != found:
                raise Finding(f"{text[:80]!r} reads as {found}, which reads as something else")
        elif kind == 3:
            chosen = Selection.parse(text)
            if Selection.parse(str(chosen)) != chosen:
                raise Finding(f"{text[:80]!r} reads as {chosen}, which reads as something else")
        elif kind == 4:
            target = grammar.parse_sparsity(text)
            if Target.parse(str(target)) != target:
                raise Finding(f"sparsity {text[:80]!r} prints as {target}, which is another")
        elif kind == 5:
            size = grammar.parse_size(text, "--size")
            if not 0 <= size < 1 << 100:
                raise Finding(f"size {text[:80]!r} is {size}")
        elif kind == 6:
            for seed in grammar.parse_list(text, "--seeds"):
                grammar.parse_seed(seed)
        elif kind == 7:
            grammar.parse_parameter(text)
        elif kind == 8:
            grammar.parse_pattern(text)
            grammar.parse_bits(text)
        elif kind == 9:
            registry.match(text.split(","))
        elif kind == 10:
            protocols.standard("lab", text)
        elif kind == 11:
            grammar.parse_share(text, "slice")
        else:
            expand(settings.gather({"methods": (text[:80],), "models": ("nano-opt",)}))


def published(data: bytes) -> None:
    """0: a whole table; 1: one row under the right heading."""
    kind, body = split(data, 2)
    text = body.decode("utf-8", "replace")
    if kind == 1:
        text = ",".join(figures.COLUMNS) + "\n" + text
    with refusals():
        for row in figures.parse(text, "fuzzed.csv"):
            row.variants  # noqa: B018 - a property that parses
            for caveat in figures.caveats():
                caveat.holds_for(row)


def texts(data: bytes) -> None:
    """A data folder's file: 0 WikiText, 1 PTB, 2 C4 as JSON lines."""
    kind, body = split(data, 3)
    dataset = ("wikitext2", "ptb", "c4")[kind]
    with scratch() as folder:
        path = documents.local_file(folder, dataset, "test")
        path.parent.mkdir()
        path.write_bytes(body)
        with refusals():
            found = documents.load(dataset, "test", folder)
            if not all(isinstance(text, str) for text in found.texts):
                raise Finding("a document that is no text")


def config_seeds() -> list[bytes]:
    """Configs as people write them, and what tries to do more."""
    return [
        b"0methods: sparsegpt,magnitude\nmodels: nano-*\nsparsity: [0.5, 60%]\nseeds: 0,1\n",
        b"0methods: [wanda+dsnot, sparsegpt@owl]\npattern: 2:4\nset:\n  sparsegpt.percdamp: 0.1\n",
        b"0models: nano-opt\nmethods: mixed\nlayers: blocks=0-1\neval: perplexity\ndtype: float32\n",
        b"1perplexity:\n  relative: 0.01\n",
        b"1" + DEFAULTS.read_bytes()[:1500],
        b"2a: !!python/object/apply:os.system ['true']\n",
        b"2a: &x [1]\nb: *x\n",
        b"2{a: {b: [1, 2.5, ~, true, '2:4']}}\n",
    ]


def words_seeds() -> list[bytes]:
    """One of every kind."""
    kinds = "0123456789:;<"
    said = (
        "wanda@owl+dsnot",
        "slice25.5%+4bit",
        "4xlora",
        "blocks=0-3|8,only=q_proj|k_proj,invert",
        "62.5%",
        "1.5GiB",
        "0,1,2",
        "sparsegpt.percdamp=0.1",
        "2:4",
        "opt-*,nano-opt",
        "kjv/validation",
        "0.25",
        "sparsegpt@mixed",
    )
    return [(kind + text).encode() for kind, text in zip(kinds, said, strict=True)]


def published_seeds() -> list[bytes]:
    """The head of the packaged table, and a quoted row."""
    table = figures._read("published.csv").encode().splitlines(keepends=True)
    return [b"0" + b"".join(table[:4]), b"1" + table[5], b"1" + table[-1], b'1a,"b, ""c""\nd",e\n']


def texts_seeds() -> list[bytes]:
    """A few lines each."""
    return [
        b"0 = A =\n\n text <unk> \n",
        b"1 no it was n't \r\n",
        b'2{"text": "a"}\n{"text": "\\ud800", "url": 1}\n',
    ]
