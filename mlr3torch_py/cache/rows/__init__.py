"""Calls of a module as rows, and their outputs.

A `call` is split into rows, each with a hash as its key, of which `keys` holds many; `output` takes outputs apart by
row and puts them together again; `rounding` says how far two computations of a row may differ.
"""
