"""Other implementations, run in environments of their own and measured in this harness."""
