"""Names of other libraries are answered with those that are used here."""

import pytest

import nnxlite as nnx
from nnxlite.interop import other_names


def test_every_name_that_is_told_exists_and_the_other_does_not():
    for other, ours in other_names._NAMES.items():
        assert ours in vars(nnx) and other not in vars(nnx)
        with pytest.raises(
            AttributeError, match=rf"'{other}': it is called nnx.{ours} "
        ):
            getattr(nnx, other)


def test_near_names_and_strange_ones():
    with pytest.raises(AttributeError, match=r"do you mean nnx.Linear( or .*)?\?$"):
        nnx.Liner  # noqa: B018
    with pytest.raises(AttributeError, match="nnxlite has no 'zzzzzz'$"):
        nnx.zzzzzz  # noqa: B018
    assert not hasattr(nnx, "__wrapped__") and "zzzzzz" not in dir(nnx)
