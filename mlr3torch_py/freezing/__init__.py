"""One engine per net that decides what is frozen, and the callbacks that declare it.

The callbacks are `unfreeze` and `freezer`; their base, `holder`, starts the `engine` and drives it. `roles` says what
the engine asks of such holders and of its `host`, here a net of skorch. It looks at an `inventory` of what the net has
now, and leaves to others the `rates` of rows, which are `rate_factors` on each optimizer, the `pinning` of modules in
eval mode, the `memory` of optimizers, the rebuilding of `data_parallel` wrappers, and the `record` of events.

What users are to be told is `advice` beforehand, with how often `compilation` takes place, and while training what was
`released` and is frozen again, and `residues` by which an optimizer still moves what is frozen. `conditions`, `phases`
and a `loaded` state complete the plans of `unfreeze`.
"""
