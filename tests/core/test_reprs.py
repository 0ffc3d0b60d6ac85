"""How models print: short, each object once, folded where they are big."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nnxlite as nnx


class Block(nnx.Module):
    def __init__(self, features, rngs):
        self.linear = nnx.Linear(features, features, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)


class Net(nnx.Module):
    def __init__(self, depth, rngs):
        self.blocks = [Block(4, rngs) for _ in range(depth)]
        self.head = nnx.Linear(4, 2, rngs=rngs)


def lines(value):
    return repr(value).splitlines()


def test_attributes_with_their_default_are_left_out():
    text = repr(nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0)))
    assert "in_features=2" in text and "use_bias=False" in text
    assert "precision" not in text and "promote_dtype" not in text
    assert repr(nnx.Dropout(0.5)) == "Dropout(rate=0.5)"


def test_a_default_of_another_type_or_with_a_strange_equality_is_shown():
    class Strange:
        def __eq__(self, other):
            raise RuntimeError("no")

        __hash__ = None

        def __repr__(self):
            return "Strange()"

    strange = Strange()

    class Layer(nnx.Module):
        def __init__(self, a=1, b=strange, c=None):
            self.a, self.b, self.c = a, b, c

    assert repr(Layer(a=True)) == "Layer(a=True)"
    assert repr(Layer(b=Strange())) == "Layer(b=Strange())"
    array = Layer(a=np.ones(2), c=nnx.Param(1))
    assert "a=array([1., 1.]), c=Param(value=1)" in repr(array)


def test_functions_that_a_user_stores_are_shown():
    class Layer(nnx.Module):
        def __init__(self, act):
            self.act = act
            self.relu = nnx.relu

    assert repr(Layer(nnx.gelu)) == "Layer(act=gelu, relu=relu)"


def test_what_is_short_stands_on_one_line():
    assert repr(nnx.List([1, "a", (2,)])) == "List(1, 'a', (2,))"
    assert repr(nnx.Dict(a=1, b=nnx.Dict())) == "Dict(a=1, b=Dict())"
    assert max(map(len, lines(Net(2, nnx.Rngs(0))))) <= 88


def test_shared_objects_name_their_first_place():
    m = Net(2, nnx.Rngs(0))
    m.tied, m.kernel, m.me = m.blocks[1], m.head.kernel, (m,)
    text = repr(m)
    assert "tied=Block(...),  # the same as blocks[1]\n" in text
    assert "kernel=Param(...),  # the same as head.kernel\n" in text
    assert "    Net(...)  # the same as the root\n" in text
    assert text.count("out_features=2") == 1


def test_alike_layers_print_once():
    m = Net(12, nnx.Rngs(0))
    text = repr(m)
    assert "12 x Block(  # each 22 (92 B)" in text
    assert text.count("Block(") == 1
    m.blocks[5].linear.kernel.set_metadata(note="odd")
    text = repr(m)
    assert "5 x Block(" in text and "6 x Block(" in text and "odd" in text


def test_values_and_static_elements_are_not_counted_together():
    assert repr(nnx.List([1, 1, 1])) == "List(1, 1, 1)"


def test_big_models_fold_from_the_inside():
    class Deep(nnx.Module):
        def __init__(self, depth):
            self.layers = [nnx.Linear(20, 20 + n, rngs=nnx.Rngs(0)) for n in range(3)]
            self.depth = depth
            if depth:
                self.left, self.right = Deep(depth - 1), Deep(depth - 1)

    shown = lines(Deep(6))
    assert 20 < len(shown) <= 100
    assert any("left=Deep(...),  # " in line for line in shown)
    assert "Deep(  # " in shown[0]
    assert len(lines(Deep(0))) < 20 and "..." not in repr(Deep(0))


def test_optimizer_state_is_shown():
    text = repr(nnx.Optimizer(nnx.Linear(30, 4, rngs=nnx.Rngs(0)), optax.adam(0.1)))
    assert "ScaleByAdamState(" in text and "float32[30,4]" in text


@pytest.mark.parametrize("transform", [nnx.jit, nnx.grad, nnx.vmap, nnx.remat])
def test_correct_under_tracing(transform):
    seen = []
    m = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    m.own = m.kernel

    def f(x):
        seen.append(repr(m))
        return jnp.sum(x * m.kernel[0, 0])

    transform(f)(jnp.ones(2) if transform is nnx.vmap else 1.0)
    jax.jit(lambda s: seen.append(repr(s)) or 0)(nnx.state(m))
    assert "kernel=Param(value=" in seen[0] and "# the same as kernel" in seen[0]
    assert "Traced" not in "".join(seen)
    assert "float32[2,2]" in seen[-1]


def test_abstract_and_random_values():
    abstract = nnx.eval_shape(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    assert "kernel=Param(value=float32[2,3])" in repr(abstract)
    assert "key<fry>[] [0, 7]" in repr(nnx.Rngs(7))


def test_graphdef_names_what_is_where():
    m = Net(1, nnx.Rngs(0))
    m.tied = m.head
    text = repr(nnx.graphdef(m))
    assert "\n  the root: Net\n" in text
    assert "\n  blocks[0].linear.kernel: Param\n" in text
    assert "\n  tied: the same as head\n" in text
    assert " more\n)" in repr(nnx.graphdef(Net(9, nnx.Rngs(0))))
