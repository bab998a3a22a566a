"""A trained network behind HTTP."""
