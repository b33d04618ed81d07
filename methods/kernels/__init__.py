"""Kernels: native code where there is a library, torch twins everywhere else, one operator for both."""
