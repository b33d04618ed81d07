"""From what a user asks for to a list of cells: settings, grammar, expansion, resources. Imports no torch."""
