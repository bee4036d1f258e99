"""Compare bit by bit, while a net trains, what is frozen, and find what never trains.

From the outside in: `callback` follows a training, by a watch on its `forward` passes; `frozen` compares the frozen
parameters and buffers, and `causes` names what may have changed them; `trainable` finds what never moves, with the help
of the autograd `graph`; `report` keeps what was compared.
"""
