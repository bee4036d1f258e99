"""One engine per net that decides what is frozen, and the callbacks that declare it.

The callbacks are `unfreeze` and `freezer`; their base, `holder`, starts the `engine` and drives it. `roles` says what
the engine asks of such holders and of its `host`, here a net of skorch. It looks at an `inventory` of what the net has
now, and leaves to others the `rates` of rows, the `memory` of optimizers, the rebuilding of `data_parallel` wrappers,
and what users are to be told beforehand: `advice`, and how often `compilation` takes place.
"""
