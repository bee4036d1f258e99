"""A training in files, resumed bit for bit."""
