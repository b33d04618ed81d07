"""Tasks of lm-evaluation-harness on the embedded text: ``lm_eval --include_path`` takes this folder as it is."""
