"""What a sliced model's folder holds beside its weights: a config that names our architecture, and its code for others."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from methods.families import sizes
from methods.stream.source import CheckpointSource

__all__ = ["CODE", "sliced_extras"]

CODE = "modeling_sliced.py"
"""Name of the bundled modelling code, in ``methods.slicing.modeling`` and in the folder."""

_README = """\
# A sliced model

SliceGPT (arXiv 2401.15024) cut the residual stream of a {family} model of width {width} to {widths}; the head reads
{head}. {parameters:,} parameters.

With prune-bench installed, its own code loads this folder:

```python
import methods.slicing
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(FOLDER)
```

`bench run --models path:FOLDER --methods dense` evaluates it. prune-bench never runs code that comes with a model:
it refuses other folders whose config has an `auto_map`, and in this one it ignores it.

For those who do not have prune-bench, the same code lies beside the weights as `{code}` (it needs torch and
transformers, nothing else). Read it, then: `AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)`.

The head is no longer tied to the token table: the two are in different bases. Do not tie them again.
"""


def sliced_extras(source: CheckpointSource) -> dict[str, str]:
    """Texts by file name for the folder of a sliced model; its config overrides the dense model's."""
    shape = source.shape
    if shape.slices is None:
        raise ValueError(f"{source.folder}: a model of family {shape.family} is not sliced")
    config: dict[str, Any] = dict(source.config)
    architecture = config["architectures"][0]
    module = CODE.removesuffix(".py")
    config["auto_map"] = {
        "AutoConfig": f"{module}.{architecture.removesuffix('ForCausalLM')}Config",
        "AutoModelForCausalLM": f"{module}.{architecture}",
    }
    widths = sorted({*shape.slices.attention, *shape.slices.feedforward}, reverse=True)
    return {
        "config.json": json.dumps(config, indent=2),
        CODE: (files("methods") / "slicing" / "modeling" / CODE).read_text(encoding="utf-8"),
        "README.md": _README.format(
            family=source.config["model_type"].rpartition("_")[2],
            width=shape.width,
            widths=f"{widths[0]} to {widths[-1]}" if len(widths) > 1 else str(widths[0]),
            head=shape.slices.head,
            parameters=sizes.parameters(shape),
            code=CODE,
        ),
    }
