"""Blocks that two families or more share."""
