"""What the configs beside this file name: lm-evaluation-harness loads it by its path, outside the package."""

from bench.evaluate.kjv_tasks.items import continuation, last_word

__all__ = ["continuation", "last_word"]
