"""A trained network in use: evaluation, prediction, comparison, export, reports and a server."""
