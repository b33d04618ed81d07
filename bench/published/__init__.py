"""What papers and their repositories print for these methods: figures with sources, matching, recipes. Free of torch."""
