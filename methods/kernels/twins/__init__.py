"""The kernels once more in plain torch: slow, obvious, and what the native code is held against."""
