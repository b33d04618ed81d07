"""Forms in which a pruned model is handed on."""
