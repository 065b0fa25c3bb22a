"""Spatial reasoning, measured: what is left, behind, inside, hidden; what falls, what sounds."""
