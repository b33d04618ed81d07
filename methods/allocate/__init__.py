"""How a target is shared out over the matrices of a model."""
