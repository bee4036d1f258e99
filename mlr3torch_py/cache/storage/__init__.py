"""The outputs of rows, kept.

A `store` has a table for each `layout` of calls, whose rows are in `memory`, as far as they are `known`; in a folder on
`disk`, to which a `shelf` is the way, of which `stored` gives an account, and on whose file system `mounts` throws
light; and, by `packing`, in a checkpoint. A `tally` counts.
"""
