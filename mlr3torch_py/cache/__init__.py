"""The outputs of frozen modules, cached by row.

From the outside in: `callback` follows a training; `parts` picks the submodules that are `frozen` as a whole and puts a
cached `module` in place of each, or of those below that can be cached if it cannot; `rejections` tells the user why
others are not. A cached module looks up rows in a `store`, computes the missing ones, and recomputes some to check
them; `admission` decides which of its calls may be answered from memory, by means of a `fingerprint` of the module and
of trials, among which `draws` finds out who draws random numbers. `rows` splits calls and outputs into rows, and
`rounding` compares them.
"""
