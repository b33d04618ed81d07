"""The harness: plans, models, texts, runs, results and the command line."""
