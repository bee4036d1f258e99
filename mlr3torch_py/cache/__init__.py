"""The outputs of frozen modules, cached by row.

From the outside in: `callback` follows a training; `parts` picks the frozen submodules and puts a cached `module` in
place of each; that one looks up rows in a `store`, computes the missing ones, and recomputes some to check them;
`admission` decides which of its calls may be answered from memory, by means of a `fingerprint` of the module and of
trials. `rows` splits calls and outputs into rows, and `rounding` compares them.
"""
