"""The command line: each verb is a few lines over the Python call of the same name."""
