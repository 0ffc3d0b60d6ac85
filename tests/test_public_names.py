"""Every public name says what it is and what it takes."""

import inspect

import pytest

import nnxlite as nnx

# Signatures that say nothing, each with the reason why there is nothing to say.
TAKES_ANYTHING = {
    nnx.Pytree: "a base class without __init__",
    nnx.Module: "a base class without __init__",
    nnx.Metric: "a base class without __init__",
    nnx.RNNCellBase: "a base class without __init__",
    nnx.List: "__new__ takes what the __init__ of a subclass takes",
    nnx.Dict: "takes what a dict takes",
}

in_each_namespace = pytest.mark.parametrize(
    "namespace",
    [
        nnx,
        nnx.debug,
        nnx.filterlib,
        nnx.functional,
        nnx.initializers,
        nnx.metrics,
        nnx.traversals,
    ],
    ids=lambda module: module.__name__,
)


def is_ours(x):
    return (getattr(x, "__module__", None) or "").startswith("nnxlite.")


def public(namespace):
    return {
        name: x
        for name, x in vars(namespace).items()
        if not name.startswith("_") and callable(x)
    }


def methods_and_properties(cls):
    """The names of the public ones that nnxlite defines, and `__call__`."""
    kinds = property, classmethod, staticmethod
    return {
        name
        for owner in filter(is_ours, cls.__mro__)
        for name, x in vars(owner).items()
        if not name.startswith("_") or name == "__call__"
        if inspect.isroutine(x) or isinstance(x, kinds)
    }


def has_doc(cls, name):
    """Whether a method or property, or one that it overrides, has a docstring."""
    return any(name in vars(base) and vars(base)[name].__doc__ for base in cls.__mro__)


@in_each_namespace
def test_names_have_docstrings(namespace):
    names = {
        n: x for n, x in public(namespace).items() if namespace is nnx or is_ours(x)
    }
    docs = {
        name: vars(x).get("__doc__") if inspect.isclass(x) else x.__doc__
        for name, x in names.items()
    }

    assert namespace.__doc__
    assert [name for name, doc in docs.items() if not doc] == []


@in_each_namespace
def test_methods_and_properties_have_docstrings(namespace):
    assert [
        f"{cls.__name__}.{name}"
        for cls in public(namespace).values()
        if inspect.isclass(cls) and is_ours(cls)
        for name in methods_and_properties(cls)
        if not has_doc(cls, name)
    ] == []


@in_each_namespace
def test_signatures_show_parameters(namespace):
    anything = [inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD]

    def takes_anything(x):
        if inspect.isclass(x) and issubclass(x, Exception):
            return False  # Python's own constructor: a message
        parameters = inspect.signature(x).parameters.values()
        return [parameter.kind for parameter in parameters] == anything

    ours = [x for x in public(namespace).values() if is_ours(x)]
    assert [x for x in ours if takes_anything(x) != (x in TAKES_ANYTHING)] == []
