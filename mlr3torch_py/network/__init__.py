"""A torch network: the names, flags, modes, bits and random states of its modules.

`unwrap` names modules and parameters, whatever wraps them, and `sharing` those that share weights; `parameters` writes
their flags. `evaluation` pins modules in eval mode, of which `normalisation` tells which are norms. `bits` and
`device_hash` compare tensors, `randomness` keeps the states of generators, and `copies` copies what torch does not.

`blocks` are what a schedule freezes as one: the `tree` says which modules are opened, the `flow` of a batch, or else
the `code_order` of `forward`, from its `code_uses` and `code_loops`, in which order they run. `compiled` tells compiled
modules, `holdings` walks what objects hold, and `internals` lists the private names of torch and skorch that are used.
"""
