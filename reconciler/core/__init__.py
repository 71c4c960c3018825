"""Values and decisions. The standard library only: no I/O, no clock, no logging; everything here is pure."""
