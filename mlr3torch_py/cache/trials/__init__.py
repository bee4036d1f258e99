"""Which calls may be answered from memory.

`admission` decides, by a `trial` now and then: it computes some rows `again`, compares them, finds out by `draws` who
draws random numbers, and by `reads` who reads weights that are trained elsewhere. `check` chooses rows from memory that
are computed again later.
"""
