"""The callbacks that need no machinery of their own."""
