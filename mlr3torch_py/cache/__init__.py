"""The outputs of frozen modules, cached by row.

From the outside in: `callback` follows a training; `parts` picks the submodules that are `frozen` as a whole, and links
without parameters between them, and puts a cached `module` in place of each, or of those below that can be cached if it
cannot; `rejections` tells the user why others are not.

Cached modules that follow each other are one. Within a forward pass, a cached module gives a `placeholder`, which
stands for an `answer`: the keys of its rows, and the call that computes them. The next cached module is `given` the
keys, not the values, and so are `operations` on placeholders, if they are `functions` that do nothing but compute. When
anything else asks for values, the placeholder becomes a tensor in place, and only these rows are kept, in the tables of
a `store`, one for each `layout` of calls, as far as they are `known`. A `boundary` around every other module sees to it
that neither hooks nor trainable modules see a placeholder, and that none outlives the pass. Both answer in the `place`
of a module's own call, and only in the thread that trains.

`admission` decides which calls may be answered from memory, by `trials`: it computes some rows `again`, compares them
up to `rounding`, looks at the `surroundings` of the module, and finds out by `draws` who draws random numbers. `check`
chooses rows from memory that are computed again later.

What a module is, its `state`, is a `fingerprint` of what it holds and its `code`, which a `code_reader` follows through
`code_objects` and `classes`; a `snapshot` tells at a glance whether it is still the same, and `portable` hashes are so
in each process.

`rows` splits calls into rows with `keys`, and `output` puts outputs together. Rows are kept in `memory`; in a folder on
`disk`, to which a `shelf` is the way and of which `stored` gives an account; and, by `packing`, in a checkpoint.
`doors` and `modes` see to what torch does below Python, `rewind` to a forward pass that fails. A `tally` counts, and a
`stopwatch` measures.
"""
