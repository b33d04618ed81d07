"""The command line: one lazily imported file a command, so that `bench --help` and completion stay quick."""
