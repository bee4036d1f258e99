"""The outputs of frozen modules, cached by row.

From the outside in: `callback` follows a training; `parts` picks the submodules that are `frozen` as a whole, and links
without parameters between them, and puts a cached `module` in place of each, or of those below that can be cached if it
cannot; `rejections` tells the user why others are not.

Cached modules that follow each other are one. Within a forward pass, a cached module gives a `placeholder`, which
stands for an `answer`: the keys of its rows, and the call that computes them. The next cached module is `given` the
keys, not the values, and so are `operations` on placeholders, if they are `functions` that do nothing but compute. When
anything else asks for values, the placeholder becomes a tensor in place, and only these rows are kept, in the tables of
a `store`, one for each `layout` of calls. A `boundary` around every other module sees to it that neither hooks nor
trainable modules see a placeholder, and that none outlives the pass. Both answer in the `place` of a module's own call,
and only in the thread that trains.

`admission` decides which calls may be answered from memory, by means of a `fingerprint` of the module and of trials,
among which `draws` finds out who draws random numbers; `check` chooses rows that are computed again. `rows` splits
calls into rows, `output` puts outputs together, `rounding` compares them, and a `tally` counts.
"""
