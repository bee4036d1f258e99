"""A torch network: the names, flags, modes, bits and random states of its modules."""
