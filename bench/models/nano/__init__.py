"""Three small packaged models, true OPT, BLOOM and LLaMA architectures, and the script that trained them."""

from __future__ import annotations
