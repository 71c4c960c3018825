"""Bounded doors to the machine, with no word of the domain."""
