"""The outputs of frozen modules, kept by row."""
