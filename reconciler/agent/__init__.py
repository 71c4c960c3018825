"""The daemon: follows git, leads when elected, works for its own server. Decisions are `core`'s; here are the effects."""
