"""The outputs of frozen modules, cached by row.

From the outside in: `callback` follows a training; `parts` picks the submodules that are `frozen` as a whole, and links
without parameters between them; `stages` puts a cached module in place of each, or of those below that can be cached
if it cannot; `rejections` tells the user why others are not, for which there are `errors`.

- `passes`: how cached modules answer within a forward pass, as if those that follow each other were one;
- `trials`: which of their calls may be answered from memory;
- `storage`: the outputs that are kept, in memory, on disk and in checkpoints;
- `rows`: calls and outputs, taken apart by row;
- `identity`: what a module is, and whether it still is the same.
"""
