import pytest

from mlr3torch_py.names import listed, nearest


@pytest.mark.parametrize("known", [["weight", "bias"], ["x"], []])
@pytest.mark.parametrize("unknown", [["wieght"], ["zzz"], ["wieght", "zzz"]])
def test_a_suggestion_is_a_sentence_with_one_end_mark(unknown, known):
    suggestion = nearest(unknown, iter(known))
    assert suggestion[-1] in ".?"
    assert not set(suggestion[:-1]) & set(".?;")


def test_the_nearest_names_are_suggested_and_otherwise_all_listed():
    assert nearest(["wieght", "zzz", "bia"], ["weight", "bias", "scale"]) == "did you mean 'weight', 'bias'?"
    assert nearest(["zzz"], map(str, range(12))).endswith("'9' and 2 more.")


def test_a_long_list_is_cut():
    assert listed("abc", most=2) == "a, b and 1 more"
    assert listed([]) == ""
