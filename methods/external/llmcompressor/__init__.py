"""llm-compressor's SparseGPT, Wanda and magnitude on the very tokens that our methods see.

It wants older versions of what we use, so it runs in an interpreter of its own (``worker``): ``interpreter``
finds that, ``exchange`` passes model, tokens and results through safetensors, ``process`` watches over the
worker, ``pruner`` is the ``Pruner``.
"""
