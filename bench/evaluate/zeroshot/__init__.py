"""Zero-shot accuracy on the task suites of lm-evaluation-harness."""
