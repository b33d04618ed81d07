"""What betters a mask before the weights that stay are updated."""
