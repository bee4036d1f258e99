"""A forward pass in which cached modules answer.

A cached `module` stands in the `place` of a module's own call, in the thread that trains; what it computes, keeps and
gives is its `stage`. It gives a `placeholder`, which stands for an `answer`: the keys of its rows, and the call that
computes them. The next cached module is `given` the keys, not the values, and so are `operations` on placeholders, if
they are `functions` that do nothing but compute. When anything else asks for values, the placeholder becomes a tensor
in place, and only these rows are kept. A `boundary` around every other module sees to it that neither hooks nor
trainable modules see a placeholder, and that none outlives the pass.

`doors` and `modes` see to what torch does below Python, `wrapped` to functions that others have wrapped, `rewind` to a
pass that fails. A `stopwatch` measures.
"""
