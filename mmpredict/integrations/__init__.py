"""Checkpoints as models of other people's evaluation frameworks. In: their requests. Out: what they
read. Nothing here is needed by the rest, and the frameworks are not installed with it."""
