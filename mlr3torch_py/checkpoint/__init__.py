"""A training in files, resumed bit for bit.

The `callback` has one `session` for each call of ``fit``, which finds its `place` in the `folder`. What a checkpoint
holds is the `net_state`: of all `parts` of the net, their `attributes` too, with the `settings` and `objects` that it
trains with and a `data_record`, as its `contents` are written by `loadable` and `portable` values, in `sealed_files`
and a `row_file`. A `layout` says whether it fits a net.

`check_resume` proves on a net that this works, by a `rehearsal` in other processes and a `resume_report`.
"""
