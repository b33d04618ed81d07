"""Models by short id: what is known of each, and where its weights come from."""
