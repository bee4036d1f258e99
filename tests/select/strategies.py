"""Random selectors, and the names that they select from."""

from operator import and_, or_, sub, xor

from hypothesis import strategies as st

from mlr3torch_py import select_all, select_glob, select_grep, select_invert, select_name, select_none, select_prefix

NAMES = [
    f"{part}.{i}.{kind}" for part in ("embed", "layer1", "layer10") for i in range(3) for kind in ("weight", "bias")
]

leaves = st.one_of(
    st.just(select_all()),
    st.just(select_none()),
    st.lists(st.sampled_from(NAMES)).map(select_name),
    st.lists(st.sampled_from([*NAMES, "absent"])).map(lambda names: select_name(names, assert_present=False)),
    st.sampled_from([r"^layer1\.", "bias$", "[[:digit:]]", "(?!x)e"]).map(select_grep),
    st.sampled_from(["LAYER", "Bias"]).map(lambda pattern: select_grep(pattern, ignore_case=True)),
    st.sampled_from([".", "1.w"]).map(lambda pattern: select_grep(pattern, fixed=True)),
    st.sampled_from(["*.bias", "layer?.*", "*[02]*"]).map(select_glob),
    st.sampled_from(["layer1", "embed.0", "layer10.2.bias"]).map(select_prefix),
)
selects = st.recursive(
    leaves,
    lambda inner: st.one_of(
        inner.map(select_invert),
        st.tuples(st.sampled_from([and_, or_, sub, xor]), inner, inner).map(lambda parts: parts[0](*parts[1:])),
    ),
    max_leaves=6,
)
name_lists = st.permutations(NAMES)
