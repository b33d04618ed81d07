"""Ways to run a plan: in this process (``local``), or over the nodes of a Ray cluster (``ray``)."""
