"""The outputs of frozen modules, cached by row."""
