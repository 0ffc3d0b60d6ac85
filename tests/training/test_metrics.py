"""Metrics against NumPy, against Flax NNX, in and out of `nnx.jit`."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nnxlite as nnx

RANDOM = np.random.default_rng(0)
VALUES = RANDOM.normal(3.0, 2.0, (4, 6)).astype(np.float32)
LOGITS = RANDOM.normal(size=(4, 6, 5)).astype(np.float32)
LABELS = RANDOM.integers(0, 5, (4, 6)).astype(np.int32)
MASK = RANDOM.integers(0, 2, (4, 6)).astype(bool)


def two_metrics():
    return nnx.MultiMetric(loss=nnx.metrics.Average(), accuracy=nnx.metrics.Accuracy())


def batch(n):
    return {"values": VALUES[n], "logits": LOGITS[n], "labels": LABELS[n]}


def mean_of(metric):
    got = metric.compute()
    return got.mean if isinstance(got, nnx.metrics.Statistics) else got


# Average


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float16, jnp.bfloat16, np.int32, bool]
)
def test_average_is_the_mean(dtype):
    average = nnx.metrics.Average()
    values = jnp.asarray(VALUES, dtype)
    average.update(values=values)
    average.update(values=values[0])
    every = np.concatenate([np.ravel(values), values[0]]).astype(np.float32)
    np.testing.assert_allclose(average.compute(), every.mean(), rtol=1e-6)
    assert average.total.dtype == jnp.float32 and average.count.dtype == jnp.int32
    assert average.count.value == 30


@pytest.mark.parametrize("value", [2, 2.0, True, np.float32(2), jnp.float32(2)])
def test_average_counts_a_scalar_once(value):
    average = nnx.metrics.Average("loss")
    average.update(loss=value)
    average.update(loss=value)
    assert (average.count.value, average.compute()) == (2, float(value))


def test_average_of_a_list_or_a_variable():
    average = nnx.metrics.Average()
    average.update(values=[1.0, 2.0])
    average.update(values=nnx.Variable(jnp.array([3.0, 6.0])))
    assert average.compute() == 3.0


def test_average_of_many_small_numbers_keeps_precision():
    average = nnx.metrics.Average()
    average.update(values=jnp.ones(100_000, jnp.float16))
    assert (average.total.value, average.count.value) == (100_000, 100_000)


def test_empty_average_is_nan():
    average = nnx.metrics.Average()
    assert jnp.isnan(average.compute())
    average.update(values=jnp.zeros(0))
    average.update(values=jnp.ones(3), mask=jnp.zeros(3, bool))
    assert jnp.isnan(average.compute())


@pytest.mark.parametrize("shape", [(4, 6), (6,), (1, 6), (4, 1), (1, 1), ()])
@pytest.mark.parametrize("dtype", [bool, np.int32, np.float32])
@pytest.mark.parametrize("kind", [nnx.metrics.Average, nnx.metrics.Welford])
def test_google_flax_5588_mask_that_broadcasts_counts_its_entries(kind, shape, dtype):
    mask = np.resize(np.array([1, 0, 1, 1], dtype), shape)
    metric = kind()
    metric.update(values=VALUES, mask=mask)
    weights = np.broadcast_to(mask, VALUES.shape)
    mean = np.average(VALUES, weights=weights)
    np.testing.assert_allclose(mean_of(metric), mean, rtol=1e-6)
    assert metric.count.value == weights.sum()
    assert metric.count.dtype == (jnp.float32 if dtype == np.float32 else jnp.int32)
    if kind is nnx.metrics.Welford:
        variance = np.average((VALUES - mean) ** 2, weights=weights)
        deviation = metric.compute().standard_deviation
        np.testing.assert_allclose(deviation**2, variance, rtol=1e-5)


@pytest.mark.parametrize("kind", [nnx.metrics.Average, nnx.metrics.Welford])
def test_weights_are_a_mask(kind):
    metric = kind()
    weights = np.linspace(0, 1, VALUES.size, dtype=np.float32).reshape(VALUES.shape)
    for n in range(4):
        metric.update(values=VALUES[n], mask=weights[n])
    mean = np.average(VALUES, weights=weights)
    np.testing.assert_allclose(mean_of(metric), mean, rtol=1e-5)


@pytest.mark.parametrize("hole", [np.nan, np.inf])
@pytest.mark.parametrize("kind", [nnx.metrics.Average, nnx.metrics.Welford])
def test_masked_values_may_be_anything(kind, hole):
    metric = kind()
    values = jnp.array([1.0, hole, 3.0])
    metric.update(values=values, mask=jnp.array([True, False, True]))
    assert mean_of(metric) == 2.0


@pytest.mark.parametrize("kind", [nnx.metrics.Average, nnx.metrics.Welford])
@pytest.mark.parametrize("given", [{}, {"values": 1.0}, {"loss": 1.0, "extra": 2.0}])
def test_missing_or_unknown_keyword(kind, given):
    metric = kind("loss")
    advice = (
        rf"{kind.__name__}.update wants the keyword 'loss'.*write update\(loss=...\)"
    )
    with pytest.raises(TypeError, match=advice):
        metric.update(**given)
    assert metric.count.value == 0


@pytest.mark.parametrize("value", [1, 2.5])
def test_mask_with_a_number(value):
    with pytest.raises(ValueError, match=f"values={value}: pass an array of values"):
        nnx.metrics.Average().update(values=value, mask=jnp.ones(2))


def test_mask_with_an_array_without_axes():
    average = nnx.metrics.Average()
    average.update(values=jnp.float32(2), mask=jnp.array(True))
    average.update(values=jnp.float32(5), mask=jnp.array(False))
    assert average.compute() == 2.0
    with pytest.raises(ValueError, match=r"bool\[2\] does not broadcast.*float32\[\]"):
        average.update(values=jnp.float32(5), mask=jnp.zeros(2, bool))


@pytest.mark.parametrize("shape", [(4,), (2, 4, 6), (4, 6, 1)])
def test_mask_that_does_not_broadcast(shape):
    average = nnx.metrics.Average()
    shown = ", ".join(map(str, shape))
    advice = rf"int32\[{shown}\] .*float32\[4, 6\].*mask\[..., None\]"
    with pytest.raises(ValueError, match=advice):
        average.update(values=VALUES, mask=np.ones(shape, np.int32))
    assert average.count.value == 0


def test_complex_values():
    with pytest.raises(TypeError, match=r"complex64\[2\]: pass real ones, abs\(values"):
        nnx.metrics.Average().update(values=jnp.ones(2, jnp.complex64))


# Accuracy


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("labels", [LABELS, LABELS.astype(np.int64)])
def test_accuracy_of_classes(labels, masked):
    accuracy = nnx.metrics.Accuracy()
    mask = MASK if masked else np.ones_like(MASK)
    accuracy.update(logits=LOGITS, labels=labels, mask=mask)
    expected = (LOGITS.argmax(-1) == LABELS)[mask].mean()
    np.testing.assert_allclose(accuracy.compute(), expected, rtol=1e-6)


@pytest.mark.parametrize("threshold", [0.0, -0.3, np.float32(0.5), np.float64(0.5)])
def test_accuracy_with_a_threshold(threshold):
    accuracy = nnx.metrics.Accuracy(threshold=threshold)
    accuracy.update(logits=VALUES - 3, labels=LABELS)
    expected = ((VALUES - 3 >= threshold) == (LABELS > 0)).mean()
    np.testing.assert_allclose(accuracy.compute(), expected, rtol=1e-6)


@pytest.mark.parametrize("threshold", [1, True, "0.5"])
def test_threshold_must_be_a_float(threshold):
    advice = rf"not {threshold!r}: write Accuracy\(threshold=0.5\)"
    with pytest.raises(TypeError, match=advice):
        nnx.metrics.Accuracy(threshold=threshold)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "bool"])
def test_labels_must_be_int32(dtype):
    advice = rf"{dtype}\[4,6\]|{dtype}\[4, 6\]: labels.astype\(jnp.int32\)"
    with pytest.raises(ValueError, match=advice):
        nnx.metrics.Accuracy().update(logits=LOGITS, labels=LABELS.astype(dtype))


@pytest.mark.parametrize(
    ("threshold", "logits", "labels"),
    [
        (None, (4, 3), (3,)),
        (None, (4, 3), (1,)),
        (None, (4, 3), (4, 3)),
        (None, (4,), (4,)),
        (0.5, (1, 3), (3,)),
        (0.5, (4, 3), (4,)),
    ],
)
def test_logits_and_labels_must_fit(threshold, logits, labels):
    accuracy = nnx.metrics.Accuracy(threshold)
    shown = [", ".join(map(str, shape)) for shape in (labels, logits)]
    advice = (
        rf"labels int32\[{shown[0]}\] do not fit logits float32\[{shown[1]}\]"
        r".*labels.argmax\(-1\)\).*Accuracy\(threshold=0.5\)"
    )
    with pytest.raises(ValueError, match=advice):
        accuracy.update(logits=jnp.ones(logits), labels=jnp.zeros(labels, jnp.int32))
    assert accuracy.count.value == 0


def test_missing_labels():
    with pytest.raises(TypeError, match="argument: 'labels'"):
        nnx.metrics.Accuracy().update(logits=LOGITS)


# Welford


def test_welford_merges_batches_of_any_size():
    welford = nnx.metrics.Welford("loss")
    for part in (VALUES[0], VALUES[1:3], VALUES[3, 0], np.zeros(0), VALUES[3, 1:]):
        welford.update(loss=part)
    mean, error, deviation = welford.compute()
    np.testing.assert_allclose(mean, VALUES.mean(), rtol=1e-6)
    np.testing.assert_allclose(deviation, VALUES.std(), rtol=1e-6)
    np.testing.assert_allclose(error, VALUES.std() / np.sqrt(24), rtol=1e-6)
    assert welford.count.value == 24 and welford.count.dtype == jnp.int32


def test_welford_is_stable_far_from_zero():
    welford = nnx.metrics.Welford()
    for row in VALUES + 10_000:
        welford.update(values=row)
    np.testing.assert_allclose(welford.compute().standard_deviation, VALUES.std(), 1e-3)


def test_empty_welford_is_nan():
    assert all(map(np.isnan, nnx.metrics.Welford().compute()))


# MultiMetric


def test_multi_metric_sends_each_metric_what_it_takes():
    metrics = two_metrics()
    for n in range(4):
        metrics.update(**batch(n))
    got = metrics.compute()
    np.testing.assert_allclose(got["loss"], VALUES.mean(), rtol=1e-6)
    np.testing.assert_allclose(
        got["accuracy"], (LOGITS.argmax(-1) == LABELS).mean(), rtol=1e-6
    )
    assert metrics.loss.count.value == metrics.accuracy.count.value == 24
    metrics.reset()
    assert metrics.loss.count.value == metrics.accuracy.count.value == 0


@pytest.mark.parametrize("typo", ["value", "lables", "maks"])
def test_google_flax_5483_keyword_that_no_metric_takes(typo):
    metrics = two_metrics()
    advice = (
        rf"no metric takes {typo}: check the spelling, .*'labels', 'logits', 'mask'"
    )
    with pytest.raises(TypeError, match=advice):
        metrics.update(**batch(0), **{typo: 1.0})
    assert metrics.loss.count.value == 0, "nothing is changed"


def test_missing_keyword_of_one_metric():
    with pytest.raises(TypeError, match=r"write update\(values=...\)"):
        nnx.MultiMetric(loss=nnx.metrics.Average()).update()


def test_mask_for_all_or_by_metric():
    metrics = two_metrics()
    metrics.update(**batch(0), mask=MASK[0])
    assert metrics.loss.count.value == metrics.accuracy.count.value == MASK[0].sum()
    metrics.reset()
    metrics.update(**batch(0), mask={"accuracy": MASK[0]})
    assert (metrics.loss.count.value, metrics.accuracy.count.value) == (
        6,
        MASK[0].sum(),
    )


@pytest.mark.parametrize(
    ("mask", "named"),
    [
        ({"los": MASK[0]}, r"mask\['los'\]"),
        ({"batches": MASK[0]}, r"mask\['batches'\]"),
    ],
)
def test_mask_that_no_metric_takes(mask, named):
    metrics = nnx.MultiMetric(loss=nnx.metrics.Average(), batches=Batches())
    with pytest.raises(TypeError, match=f"no metric takes {named}: check the spelling"):
        metrics.update(values=VALUES[0], mask=mask)
    with pytest.raises(TypeError, match="no metric takes mask: check the spelling"):
        nnx.MultiMetric(batches=Batches()).update(values=1.0, mask=MASK)
    metrics.update(values=VALUES[0], mask=MASK[0])
    assert (metrics.loss.count.value, metrics.batches.count.value) == (MASK[0].sum(), 1)


class Batches(nnx.Metric):
    """Counts updates; takes `values` and, as Flax's metrics must, all the rest."""

    def __init__(self):
        self.count = nnx.metrics.MetricState(jnp.zeros((), jnp.int32))

    def update(self, *, values, **_):
        self.count += 1

    def reset(self):
        self.count[...] = 0

    def compute(self):
        return self.count.value


class Everything(nnx.Metric):
    """Takes whatever there is."""

    def __init__(self):
        self.seen = ()

    def update(self, **kwargs):
        self.seen = tuple(sorted(kwargs))

    def compute(self):
        return self.seen


class FromLogits(nnx.metrics.Average):
    """Overrides `update`: what Average takes no longer counts."""

    def update(self, *, logits):
        super().update(values=jnp.max(logits, -1))


def test_metrics_of_the_user():
    metrics = nnx.MultiMetric(batches=Batches(), top=FromLogits())
    with pytest.raises(TypeError, match="no metric takes extra"):
        metrics.update(values=1.0, logits=LOGITS, extra=1)
    metrics.update(values=1.0, logits=LOGITS)
    got = metrics.compute()
    assert got["batches"] == 1
    np.testing.assert_allclose(got["top"], LOGITS.max(-1).mean(), rtol=1e-6)


def test_metric_that_takes_everything():
    metrics = nnx.MultiMetric(all=Everything(), loss=nnx.metrics.Average())
    metrics.update(values=1.0, other=2)
    assert metrics.compute()["all"] == ("other", "values")


def test_multi_metrics_nest():
    inner = nnx.MultiMetric(a=nnx.metrics.Average("a"), b=nnx.metrics.Welford("b"))
    metrics = nnx.MultiMetric(inner=inner, c=nnx.metrics.Average("c"))
    mask = jnp.array([True, False])
    x = jnp.array([1.0, 2.0])
    metrics.update(a=x, b=x, c=x, mask={"inner": {"a": mask}})
    got = metrics.compute()
    assert (got["c"], got["inner"]["a"]) == (1.5, 1.0)
    np.testing.assert_allclose(got["inner"]["b"], (1.5, 0.5 / np.sqrt(2), 0.5))
    with pytest.raises(TypeError, match="no metric takes d: check the spelling"):
        metrics.update(a=x, b=x, c=x, d=x)


@pytest.mark.parametrize(
    "name", ["update", "reset", "compute", "split", "argname", "_metrics", "_nnx_stamp"]
)
def test_metric_named_like_a_method(name):
    with pytest.raises(
        ValueError, match=f"uses the name '{name}' itself: choose another"
    ):
        nnx.MultiMetric(**{name: nnx.metrics.Average()})


def test_only_metrics_are_metrics():
    with pytest.raises(
        TypeError, match="loss is a float, not a metric: derive its cla"
    ):
        nnx.MultiMetric(loss=1.0)


@pytest.mark.parametrize("method", ["reset", "update", "compute"])
def test_base_class_defines_nothing(method):
    with pytest.raises(NotImplementedError, match=f"define Metric.{method}"):
        getattr(nnx.Metric(), method)()


# All metrics


METRICS = {
    "average": (nnx.metrics.Average, lambda n: {"values": VALUES[n]}),
    "masked": (nnx.metrics.Average, lambda n: {"values": VALUES[n], "mask": MASK[n]}),
    "accuracy": (
        nnx.metrics.Accuracy,
        lambda n: {"logits": LOGITS[n], "labels": LABELS[n]},
    ),
    "threshold": (
        lambda: nnx.metrics.Accuracy(0.5),
        lambda n: {"logits": VALUES[n], "labels": LABELS[n]},
    ),
    "welford": (nnx.metrics.Welford, lambda n: {"values": VALUES[n]}),
    "multi": (two_metrics, batch),
    "user": (Batches, lambda n: {"values": 1.0}),
}
all_metrics = pytest.mark.parametrize(("make", "given"), METRICS.values(), ids=METRICS)


def updated(metric, given, batches=range(2)):
    for n in batches:
        metric.update(**given(n))
    return metric


def same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)


@all_metrics
@pytest.mark.parametrize("how", ["passed", "captured", "method", "returned"])
def test_jit_is_transparent(make, given, how):
    metric, eager = make(), updated(make(), given, range(3))
    traces = []

    @nnx.jit
    def passed(metric, kwargs):
        traces.append(1)
        metric.update(**kwargs)
        return metric.compute()

    @nnx.jit
    def captured(kwargs):
        traces.append(1)
        metric.update(**kwargs)
        return metric.compute()

    @nnx.jit
    def returned(kwargs, old):
        traces.append(1)
        new = old if old is not None else make()
        new.update(**kwargs)
        return new

    if how == "returned":
        metric = None
    for n in range(3):
        if how == "passed":
            got = passed(metric, given(n))
        elif how == "captured":
            got = captured(given(n))
        elif how == "method":
            got = nnx.jit(metric.update)(**given(n))
        else:
            metric = returned(given(n), metric)
    assert metric is not None
    same(metric.compute(), eager.compute())
    if how in ("passed", "captured"):
        same(got, eager.compute())
        assert len(traces) == 1


@all_metrics
def test_reset_starts_anew_and_keeps_dtypes(make, given):
    metric = updated(make(), given)
    before = jax.tree.map(jnp.shape, nnx.state(make()))
    metric.reset()
    same(nnx.state(metric), nnx.state(make()))
    assert jax.tree.map(jnp.shape, nnx.state(metric)) == before
    dtypes = [
        [x.dtype for x in jax.tree.leaves(nnx.state(m))] for m in (metric, make())
    ]
    assert dtypes[0] == dtypes[1]
    nnx.jit(lambda m: m.reset())(metric)
    same(nnx.state(metric), nnx.state(make()))


@all_metrics
def test_google_flax_5483_reset_keeps_a_mapped_axis(make, given):
    metric = make()
    for _, leaf in nnx.to_flat_state(nnx.state(metric)):
        leaf.value = jnp.ones((3, *leaf.shape), leaf.dtype)
    metric.reset()
    assert {x.shape for x in jax.tree.leaves(nnx.state(metric))} == {(3,)}


@all_metrics
def test_google_flax_5489_graphdefs_hash(make, given):
    a, b = nnx.graphdef(make()), nnx.graphdef(updated(make(), given))
    assert a == b and hash(a) == hash(b)


@all_metrics
def test_split_and_merge(make, given):
    metric = updated(make(), given)
    graphdef, states, rest = metric.split(nnx.metrics.MetricState, ...)
    assert not rest
    same(nnx.merge(graphdef, states, rest).compute(), metric.compute())


@all_metrics
@pytest.mark.parametrize(
    "copied", [nnx.clone, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copies_are_independent(make, given, copied):
    metric = updated(make(), given)
    other = copied(metric)
    same(other.compute(), metric.compute())
    other.reset()
    assert any(np.any(x) for x in jax.tree.leaves(nnx.state(metric)))


@all_metrics
def test_plain_jax_over_the_state(make, given):
    eager = updated(make(), given)
    graphdef, state = nnx.split(make())

    @jax.jit
    def step(state, kwargs):
        metric = nnx.merge(graphdef, state)
        metric.update(**kwargs)
        return nnx.state(metric)

    for n in range(2):
        state = step(state, given(n))
    same(nnx.merge(graphdef, state).compute(), eager.compute())


@all_metrics
def test_update_inside_grad(make, given):
    metric, w = make(), nnx.Param(2.0)

    @nnx.jit
    @nnx.grad
    def gradient(w):
        metric.update(**given(0))
        return w * 3.0

    assert gradient(w).value == 3.0
    same(metric.compute(), updated(make(), given, [0]).compute())


@all_metrics
def test_plain_vmap_over_the_state(make, given):
    graphdef, state = nnx.split(make())
    many = jax.tree.map(lambda x: jnp.stack([x, x]), state)

    def lane(state, kwargs):
        metric = nnx.merge(graphdef, state)
        metric.reset()
        metric.update(**kwargs)
        return metric.compute()

    both = jax.tree.map(lambda *x: jnp.stack(x), given(0), given(1))
    got = jax.vmap(lane)(many, both)
    for n in range(2):
        mine = jax.tree.map(lambda x, n=n: x[n], got)
        same(mine, updated(make(), given, [n]).compute())


def test_exception_in_jit_changes_nothing():
    metrics = two_metrics()

    @nnx.jit
    def step():
        metrics.update(**batch(0))
        raise RuntimeError("later")

    with pytest.raises(RuntimeError, match="later"):
        step()
    assert metrics.loss.count.value == 0


@pytest.mark.parametrize(
    ("make", "kernel", "given"),
    [
        (nnx.metrics.Average, "_averaged", {"values": VALUES}),
        (nnx.metrics.Accuracy, "_judged", {"logits": LOGITS, "labels": LABELS}),
        (nnx.metrics.Welford, "_merged", {"values": VALUES}),
    ],
)
def test_update_is_one_compiled_call(monkeypatch, make, kernel, given):
    metric, made = make(), []
    state = [v for v in vars(metric).values() if isinstance(v, nnx.Variable)]
    before = [v.value for v in state]

    def call(*args):
        assert {id(x) for x in before} <= set(map(id, args)), "no operation before it"
        made.append([object() for _ in state])
        return made[-1]

    assert isinstance(getattr(nnx.metrics, kernel), type(jax.jit(call)))
    monkeypatch.setattr(nnx.metrics, kernel, call)
    metric.update(**given)
    assert [v.value for v in state] == made[0], "no operation after it"
    assert len(made) == 1


# Flax NNX


def flax_like(oracle, name, *args):
    return getattr(oracle("flax.nnx").metrics, name)(*args)


@pytest.mark.parametrize(
    ("name", "args", "updates"),
    [
        ("Average", (), [{"values": VALUES}, {"values": 2.0}, {"values": 3}]),
        ("Average", ("x",), [{"x": VALUES}, {"x": VALUES, "mask": MASK}]),
        ("Accuracy", (), [{"logits": LOGITS, "labels": LABELS}]),
        ("Accuracy", (), [{"logits": LOGITS, "labels": LABELS, "mask": MASK}] * 2),
        ("Accuracy", (0.5,), [{"logits": VALUES, "labels": LABELS}]),
        ("Welford", (), [{"values": v} for v in VALUES] + [{"values": 1.5}]),
    ],
)
def test_as_flax(oracle, name, args, updates):
    ours = getattr(nnx.metrics, name)(*args)
    theirs = flax_like(oracle, name, *args)
    for kwargs in updates:
        kwargs = {
            k: jnp.asarray(x) if isinstance(x, np.ndarray) else x
            for k, x in kwargs.items()
        }
        ours.update(**kwargs)
        theirs.update(**kwargs)
        np.testing.assert_allclose(
            jax.tree.leaves(ours.compute()),
            jax.tree.leaves(theirs.compute()),
            rtol=1e-6,
        )
    for field in ("total", "count", "mean", "m2"):
        if hasattr(theirs, field):
            mine, other = getattr(ours, field), getattr(theirs, field)
            assert (mine.shape, mine.dtype) == (other.shape, other.dtype)
            np.testing.assert_allclose(mine[...], other[...], rtol=1e-6)


def test_multi_metric_as_flax(oracle):
    theirs = oracle("flax.nnx")
    other = theirs.MultiMetric(
        loss=theirs.metrics.Average(), accuracy=theirs.metrics.Accuracy()
    )
    ours = two_metrics()
    for mask in (None, MASK[0], {"loss": MASK[0]}):
        kwargs = jax.tree.map(jnp.asarray, batch(0))
        if mask is not None:
            kwargs["mask"] = jax.tree.map(jnp.asarray, mask)
        ours.update(**kwargs)
        other.update(**kwargs)
        same(ours.compute(), other.compute())
    state = theirs.to_flat_state(theirs.state(other))
    assert nnx.to_flat_state(nnx.state(ours)).paths == state.paths


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "error", "advice"),
    [
        ("Average", (), {"loss": 1.0}, TypeError, r"write update\(values=...\)"),
        (
            "Average",
            (),
            {"values": 1.0, "mask": jnp.ones(2)},
            ValueError,
            "pass an array of values",
        ),
        (
            "Accuracy",
            (),
            {"logits": jnp.asarray(LOGITS), "labels": jnp.asarray(LABELS * 1.0)},
            ValueError,
            r"labels.astype\(jnp.int32\)",
        ),
        (
            "Accuracy",
            (),
            {"logits": jnp.ones(5), "labels": jnp.ones(5, jnp.int32)},
            ValueError,
            r"pass labels.argmax\(-1\)",
        ),
        (
            "Accuracy",
            (0.5,),
            {"logits": jnp.asarray(LOGITS), "labels": jnp.asarray(LABELS)},
            ValueError,
            "the shapes are the same",
        ),
        ("Accuracy", (1,), {}, TypeError, r"write Accuracy\(threshold=0.5\)"),
    ],
)
def test_refuses_what_flax_refuses(oracle, name, args, kwargs, error, advice):
    with pytest.raises(error, match=advice):
        getattr(nnx.metrics, name)(*args).update(**kwargs)
    with pytest.raises(error, match="."):
        flax_like(oracle, name, *args).update(**kwargs)
