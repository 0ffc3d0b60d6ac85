"""Collection names of kinds, metadata by initializers, and eager sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import nnxlite as nnx
from nnxlite.core import kinds

NAMES = {
    "params": nnx.Param,
    "batch_stats": nnx.BatchStat,
    "cache": nnx.Cache,
    "intermediates": nnx.Intermediate,
    "perturbations": nnx.Perturbation,
}


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(kinds, "_kinds", dict(kinds._kinds))


# Names


@pytest.mark.parametrize(("name", "kind"), NAMES.items())
def test_known_names(oracle, name, kind):
    assert nnx.variable_type_from_name(name) is kind
    assert nnx.variable_name_from_type(kind) == name
    flax = oracle("flax.nnx")
    assert flax.variable_type_from_name(name).__name__ == kind.__name__


def test_unknown_name():
    advice = (
        r"under 'stats', only under \['batch_stats', .*"
        r"nnx.register_variable_name\('stats', cls\), or pass allow_register=True"
    )
    with pytest.raises(ValueError, match=advice):
        nnx.variable_type_from_name("stats")
    with pytest.raises(ValueError, match=advice):
        nnx.variable_type_from_name("stats", base=nnx.Param)


@pytest.mark.parametrize("base", [nnx.Variable, nnx.Param, nnx.Intermediate])
def test_a_name_makes_a_kind(base):
    kind = nnx.variable_type_from_name("stats", base=base, allow_register=True)
    assert kind.__name__ == "stats" and issubclass(kind, base)
    assert nnx.variable_type_from_name("stats") is kind
    assert nnx.variable_type_from_name("stats", allow_register=True) is kind
    assert nnx.variable_name_from_type(kind) == "stats"
    v = kind(jnp.ones(2), a=1)
    assert nnx.state(nnx.Dict(v=v), kind)["v"] is v
    doubled = jax.tree.map(lambda x: x * 2, v)
    assert type(doubled) is kind and doubled.a == 1
    assert type(nnx.jit(lambda v: v)(v)) is kind


def test_the_base_of_a_name():
    assert nnx.variable_type_from_name("stats", allow_register=True).__bases__ == (
        nnx.Variable,
    )


class Mine(nnx.Param):
    pass


def test_names_are_of_exactly_the_class():
    advice = (
        r"Mine is registered under no name: .*"
        r"nnx.register_variable_name\('name', Mine\), or pass allow_register=True"
    )
    with pytest.raises(ValueError, match=advice):
        nnx.variable_name_from_type(Mine)
    assert nnx.variable_name_from_type(Mine, allow_register=True) == "Mine"
    assert nnx.variable_name_from_type(Mine) == "Mine"
    assert nnx.variable_type_from_name("Mine") is Mine


@pytest.mark.parametrize("kind", [nnx.Variable, nnx.RngKey, nnx.OptState])
def test_kinds_without_a_name(kind):
    with pytest.raises(
        ValueError, match=rf"{kind.__name__} is registered under no name"
    ):
        nnx.variable_name_from_type(kind)


def test_own_name_is_taken():
    taken = type("params", (nnx.Variable,), {})
    advice = "'params' belongs to Param: choose another, or pass overwrite=True"
    with pytest.raises(ValueError, match=advice):
        nnx.variable_name_from_type(taken, allow_register=True)


@pytest.mark.parametrize("as_decorator", [False, True])
def test_registering(as_decorator):
    if as_decorator:

        @nnx.register_variable_name("mine")
        class Kind(nnx.Variable):
            pass
    else:

        class Kind(nnx.Variable):
            pass

        assert nnx.register_variable_name("mine", Kind) is Kind
    assert isinstance(Kind, type) and issubclass(Kind, nnx.Variable)
    assert nnx.variable_type_from_name("mine") is Kind
    assert nnx.variable_name_from_type(Kind) == "mine"


@pytest.mark.parametrize("as_decorator", [False, True])
def test_registering_a_taken_name(as_decorator):
    def register(**options):
        if as_decorator:
            return nnx.register_variable_name("params", **options)(Mine)
        return nnx.register_variable_name("params", Mine, **options)

    advice = "'params' belongs to Param: choose another, or pass overwrite=True"
    with pytest.raises(ValueError, match=advice):
        register()
    assert nnx.variable_type_from_name("params") is nnx.Param
    assert register(overwrite=True) is Mine
    assert nnx.variable_type_from_name("params") is Mine


def test_registering_a_class_under_its_own_name_again():
    assert nnx.register_variable_name("params", nnx.Param) is nnx.Param


# Metadata by initializers


@pytest.mark.parametrize("kind", [nnx.Variable, nnx.Param, nnx.BatchStat])
def test_with_metadata(kind):
    init = nnx.with_metadata(nnx.initializers.normal(2.0), names=["a", None], note=1)
    made = init(jax.random.key(0), (2, 3), jnp.bfloat16)
    assert isinstance(made, nnx.VariableMetadata)
    assert made.metadata == {"names": ["a", None], "note": 1}
    plain = nnx.initializers.normal(2.0)(jax.random.key(0), (2, 3), jnp.bfloat16)
    assert (
        np.array_equal(made.raw_value, plain) and made.raw_value.dtype == jnp.bfloat16
    )
    v = kind(made)
    assert type(v) is kind and v.value is made.raw_value
    assert (v.names, v.note) == (("a", None), 1)
    assert kind(made, note=2, more=3).get_metadata() == {
        "names": ("a", None),
        "note": 2,
        "more": 3,
    }


def test_with_metadata_nests_and_the_outer_one_wins():
    inner = nnx.with_metadata(nnx.initializers.zeros, a=1, b=1)
    outer = nnx.with_metadata(inner, b=2, c=3)
    v = nnx.Param(outer(jax.random.key(0), (2,)))
    assert v.get_metadata() == {"a": 1, "b": 2, "c": 3} and v.shape == (2,)


def test_with_metadata_is_made_anew_at_each_call():
    init = nnx.with_metadata(nnx.initializers.normal(), a=1)
    first, second = (nnx.Param(init(jax.random.key(n), (2,))) for n in range(2))
    first.set_metadata(a=2)
    assert second.a == 1 and not np.array_equal(first.value, second.value)


ONES, NORMAL = nnx.initializers.ones, nnx.initializers.normal()
LAYERS = {
    "Linear": (nnx.Linear, (2, 3), {"kernel": NORMAL, "bias": ONES}),
    "Conv": (nnx.Conv, (2, 3, (3,)), {"kernel": NORMAL, "bias": ONES}),
    "Embed": (nnx.Embed, (4, 3), {"embedding": NORMAL}),
    "LayerNorm": (nnx.LayerNorm, (3,), {"scale": NORMAL, "bias": ONES}),
    "BatchNorm": (nnx.BatchNorm, (3,), {"scale": NORMAL, "bias": ONES}),
}


@pytest.mark.parametrize(("layer", "args", "given"), LAYERS.values(), ids=LAYERS)
def test_layers_take_metadata_from_initializers(layer, args, given):
    plain = {f"{name}_init": init for name, init in given.items()}
    marked = {
        f"{name}_init": nnx.with_metadata(init, is_for=name)
        for name, init in given.items()
    }
    expected = layer(*args, **plain, rngs=nnx.Rngs(0))
    made = layer(*args, **marked, rngs=nnx.Rngs(0))
    for name in given:
        v = getattr(made, name)
        assert type(v) is nnx.Param and v.is_for == name
        assert np.array_equal(v.value, getattr(expected, name).value)


def test_variable_metadata_is_frozen():
    made = nnx.VariableMetadata(jnp.ones(2), {"a": 1})
    with pytest.raises(AttributeError, match="cannot assign to field 'raw_value'"):
        made.raw_value = 1


# Eager sharding


def mesh(kind="auto"):
    types = {
        "auto": jax.sharding.AxisType.Auto,
        "explicit": jax.sharding.AxisType.Explicit,
    }
    return jax.make_mesh((1,), ("a",), axis_types=(types[kind],))


SPECS = [("a", None), ["a", None], PartitionSpec("a", None), (None, "a")]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", ["auto", "explicit"])
@pytest.mark.parametrize("transform", [lambda f: f, nnx.jit])
def test_values_are_placed_on_the_mesh_in_use(spec, kind, transform):
    def make():
        return nnx.Param(jnp.ones((2, 2)), out_sharding=spec)

    with jax.set_mesh(mesh(kind)):
        placed = transform(make)().sharding
    assert isinstance(placed, NamedSharding) and placed.mesh.axis_names == ("a",)
    if transform is not nnx.jit or kind == "explicit":  # else the compiler decides
        assert placed.spec == PartitionSpec(*spec)


@pytest.mark.parametrize("spec", SPECS)
def test_values_are_placed_on_a_mesh_of_their_own(spec):
    own = mesh()
    v = nnx.Param(jnp.ones((2, 2)), out_sharding=spec, mesh=own)
    assert v.sharding == NamedSharding(own, PartitionSpec(*spec))


def test_values_are_placed_by_a_whole_sharding():
    sharding = NamedSharding(mesh(), PartitionSpec("a"))
    assert nnx.Param(jnp.ones((2, 2)), out_sharding=sharding).sharding == sharding


@pytest.mark.parametrize("spec", [*SPECS, None])
def test_without_a_mesh_values_stay_where_they_are(spec):
    value = jnp.ones((2, 2))
    v = nnx.Param(value, out_sharding=spec)
    assert v.value is value
    assert v.out_sharding == (tuple(spec) if isinstance(spec, list) else spec)


def test_initializers_and_layers_place_their_values():
    init = nnx.with_metadata(nnx.initializers.ones, out_sharding=(None, "a"))
    with jax.set_mesh(mesh()):
        layer = nnx.Linear(2, 4, kernel_init=init, rngs=nnx.Rngs(0))
        assert layer.kernel.sharding.spec == PartitionSpec(None, "a")
        copies = layer.kernel.copy(), nnx.clone(layer).kernel
        assert all(v.sharding == layer.kernel.sharding for v in copies)


def test_axis_that_the_mesh_does_not_have():
    with jax.set_mesh(mesh()), pytest.raises(ValueError, match="axis.*b.*not found"):
        nnx.Param(jnp.ones((2, 2)), out_sharding=("b",))


def test_eager_sharding_may_be_switched_off():
    value = jnp.ones((2, 2))

    def make():
        return nnx.Param(value, out_sharding=("a",), mesh=own)

    own = mesh()
    assert nnx.using_eager_sharding() is True
    with nnx.use_eager_sharding(False):
        assert nnx.using_eager_sharding() is False
        assert make().value is value and make().out_sharding == ("a",)
        with nnx.use_eager_sharding(True):
            assert make().sharding == NamedSharding(own, PartitionSpec("a"))
        assert nnx.using_eager_sharding() is False
    assert nnx.using_eager_sharding() is True
    assert make().sharding == NamedSharding(own, PartitionSpec("a"))


def test_eager_sharding_comes_back_after_an_exception():
    with pytest.raises(RuntimeError, match="inside"):
        with nnx.use_eager_sharding(False):
            raise RuntimeError("inside")
    assert nnx.using_eager_sharding() is True


def test_eager_sharding_as_a_setting():
    nnx.use_eager_sharding(False)
    try:
        assert nnx.using_eager_sharding() is False
    finally:
        nnx.use_eager_sharding(True)
    assert nnx.using_eager_sharding() is True
