"""git → the desired state's files: where it is, which revision stands there, who signed it, and whether it goes forward."""
