"""What a frozen module is: what it holds, and what its code is.

Its `state` is a `fingerprint` of what it holds and its `code`, which a `code_reader` follows through `code_objects` and
`classes`; a `snapshot` tells at a glance whether it is still the same, and `portable` hashes are so in each process.
`surroundings` are what a module can reach outside of itself.
"""
