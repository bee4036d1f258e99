"""Which calls may be answered from memory.

`admission` decides, by a `trial` now and then: it computes some rows `again`, compares them, and finds out by `draws`
who draws random numbers. `check` chooses rows from memory that are computed again later.
"""
