"""Everything that reads input from outside, given input that nobody meant: only a typed error may come of it."""
