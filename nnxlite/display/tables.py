"""Tables: what each Module of a model takes, gives, holds and costs."""

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..core.arrays import is_array, type_of
from ..core.filters import Filter, to_predicate
from ..core.graph import variables_of
from ..core.interception import Call
from ..core.module import Module, Pytree, iter_nodes
from ..core.paths import Path, format_path
from ..core.rngs import RngState
from ..core.variable import Variable
from ..surgery.interception import intercept
from ..transforms.autodiff import value_and_grad
from ..transforms.compilation import jit
from ..transforms.tracing import eval_shape


class Row(NamedTuple):
    """One Module.

    Attributes:
      path: where it is.
      type: its class.
      inputs, outputs: of its first call, as text; None if it was not called.
      calls: how often it was called.
      counts: by kind of Variable, how many numbers it and what is below it hold; and
        how many of them are `frozen`.
      bytes: how many bytes they take.
      share: of the numbers of all Params of the model, between 0 and 1.
      flops, vjp_flops: of the first call, and of the call with its gradients; None if
        they were not asked for.
    """

    path: Path
    type: str
    inputs: str | None
    outputs: str | None
    calls: int
    counts: Mapping[str, int]
    bytes: int
    share: float
    flops: float | None
    vjp_flops: float | None


class Table(str):
    """A table as text; notebooks show it as HTML.

    Attributes:
      rows: the Modules, in the order of their first calls, outer ones first.
    """

    rows: Sequence[Row]

    def __new__(cls, rows: Sequence[Row]) -> "Table":
        lines = _cells(rows)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        texts = []
        for line in [lines[0], ["-" * n for n in widths], *lines[1:]]:
            named = zip(lines[0], line, widths, strict=True)
            cells = [x.ljust(n) if k in _WORDS else x.rjust(n) for k, x, n in named]
            texts.append("  ".join(cells).rstrip())
        table = super().__new__(cls, "\n".join(texts))
        table.rows = rows
        return table

    __repr__ = str.__str__

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The rows by path, as nested dicts of plain values."""
        named = {format_path(x.path) if x.path else "": x._asdict() for x in self.rows}
        return {k: {**x, "counts": dict(x["counts"])} for k, x in named.items()}

    def _repr_html_(self) -> str:
        heads, *lines = _cells(self.rows)

        def row(tag: str, texts: Sequence[str]) -> str:
            sides = ["left" if head in _WORDS else "right" for head in heads]
            cells = [
                f'<{tag} style="text-align:{side};padding:2px 10px;white-space:pre">'
                f"{html.escape(text)}</{tag}>"
                for side, text in zip(sides, texts, strict=True)
            ]
            return f"<tr>{''.join(cells)}</tr>"

        body = "".join(row("td", texts) for texts in lines)
        return f"<table><thead>{row('th', heads)}</thead><tbody>{body}</tbody></table>"


class _Inputs:
    """What a method is called with; only arrays and objects are traced, no flags."""

    def __init__(self, args: Any, kwargs: Any):
        tree = (args, kwargs)
        self.leaves, self.treedef = jax.tree.flatten(tree, is_leaf=_is_object)
        self.traced = list(filter(_is_traced, self.leaves))

    def __str__(self) -> str:
        args, kwargs = self.treedef.unflatten(self.leaves)
        given = {name: x for name, x in kwargs.items() if x is not None}
        named = [f"{name}={_described(x)}" for name, x in given.items()]
        return ", ".join([*map(_described, args), *named])

    def call(self, module: Any, method: str, traced: Sequence[Any]) -> Any:
        rest = iter(traced)
        leaves = [next(rest) if _is_traced(x) else x for x in self.leaves]
        args, kwargs = self.treedef.unflatten(leaves)
        return getattr(module, method)(*args, **kwargs)


class _Seen:
    """The first call of a Module, as shapes, and how many calls there were."""

    def __init__(self, method: str, inputs: _Inputs):
        self.method = method
        self.inputs = inputs
        self.result: Any = None
        self.calls = 0


def tabulate(
    model: Any,
    *args: Any,
    method: str = "__call__",
    depth: int | None = None,
    only: Filter = ...,
    compute_flops: bool = False,
    compute_vjp_flops: bool = False,
    **kwargs: Any,
) -> Table:
    """A table of the Modules of a model.

    With inputs, or shapes of them, it also says what each Module takes and gives. The
    model is called with shapes only, and is as it was afterwards. Shares are of the
    numbers of all Params.

    Args:
      model: a Module.
      *args: what it is called with: arrays or `jax.ShapeDtypeStruct`s; without any, it
        is not called.
      method: the method to call.
      depth: how many levels of Modules below the model are shown; all if None. Lists
        and dicts are no levels.
      only: which Modules are shown.
      compute_flops: whether to count the operations of each Module's call; each is
        compiled for it.
      compute_vjp_flops: likewise of its call with gradients.
      **kwargs: what the method is called with.

    Raises:
      ValueError: for a negative depth.

    Example:
      >>> import jax, jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu)
      >>> print(nnx.tabulate(model, jax.ShapeDtypeStruct((8, 2), jnp.float32)))
      path       type        inputs        outputs       Param  bytes   share
      ---------  ----------  ------------  ------------  -----  -----  ------
                 Sequential  float32[8,2]  float32[8,3]      9     36  100.0%
      layers[0]  Linear      float32[8,2]  float32[8,3]      9     36  100.0%
    """
    if depth is not None and depth < 0:
        raise ValueError(f"nnx.tabulate: depth must not be negative, and is {depth}")
    seen = _calls(model, method, _Inputs(args, kwargs)) if args or kwargs else {}
    matches, places = to_predicate(only), {number: n for n, number in enumerate(seen)}
    modules = [
        (path, node)
        for path, node in iter_nodes(model)
        if isinstance(node, Module) and (not path or not isinstance(node, (list, dict)))
    ]
    modules.sort(key=lambda x: (places.get(id(x[1]), len(places)), len(x[0])))
    paths = {path for path, _ in modules}
    whole = _counts(model)[0].get("Param", 0)
    rows = []
    for path, node in modules:
        level = sum(path[:size] in paths for size in range(len(path)))
        if not matches(path, node) or depth is not None and level > depth:
            continue
        (counts, size), first = _counts(node), seen.get(id(node))
        rows.append(
            Row(
                path,
                type(node).__name__,
                first and str(first.inputs),
                first and _described(first.result),
                first.calls if first else 0,
                counts,
                size,
                counts.get("Param", 0) / whole if whole else 0.0,
                _flops(node, first, False) if first and compute_flops else None,
                _flops(node, first, True) if first and compute_vjp_flops else None,
            )
        )
    return Table(rows)


def _calls(model: Any, method: str, inputs: _Inputs) -> dict[int, _Seen]:
    """The calls of the Modules, by id, when the model is called with shapes."""
    seen: dict[int, _Seen] = {}

    def watch(next: Any, args: Any, kwargs: Any, call: Call) -> Any:
        if id(call.module) not in seen:
            shapes = _Inputs(*_shapes((args, kwargs)))
            seen[id(call.module)] = _Seen(call.method_name, shapes)
        first = seen[id(call.module)]
        first.calls += 1
        is_first = first.calls == 1
        result = next(*args, **kwargs)
        if is_first:
            first.result = _shapes(result)
        return result

    with intercept(watch):
        eval_shape(lambda *traced: inputs.call(model, method, traced), *inputs.traced)
    return seen


def _flops(module: Any, first: _Seen, gradients: bool) -> float:
    """The operations of one call, from the compiled program."""
    values = first.inputs.traced
    floats = [x if _is_float(x) else None for x in values]
    others = [None if _is_float(x) else x for x in values]

    def call(module: Any, floats: Any, others: Any) -> list[Any]:
        both = zip(floats, others, strict=True)
        values = [y if x is None else x for x, y in both]
        result = first.inputs.call(module, first.method, values)
        return [x for x in jax.tree.leaves(result) if is_array(x)]

    def total(*args: Any) -> Any:
        outputs = filter(_is_float, call(*args))
        return sum((jnp.real(y).sum() for y in outputs), jnp.zeros(()))

    program: Any = value_and_grad(total, argnums=(0, 1)) if gradients else call
    costs: Any = jit(program).lower(module, floats, others).compile().cost_analysis()
    return float(costs.get("flops", 0.0)) if isinstance(costs, Mapping) else 0.0


def _is_float(value: Any) -> bool:
    return is_array(value) and jnp.issubdtype(value.dtype, jnp.inexact)


def _shapes(tree: Any) -> Any:
    """A tree with shapes for arrays and Variables."""

    def shape(x: Any) -> Any:
        x = x.value if isinstance(x, Variable) else x
        return jax.ShapeDtypeStruct(x.shape, x.dtype) if is_array(x) else x

    return jax.tree.map(shape, tree, is_leaf=_is_object)


def _is_object(value: Any) -> bool:
    return isinstance(value, (Variable, Pytree))


def _is_traced(value: Any) -> bool:
    return is_array(value) or _is_object(value)


def _described(tree: Any) -> str:
    """The arrays of a tree, as `float32[8,2]`."""
    leaves = jax.tree.leaves(tree, is_leaf=_is_object)
    return ", ".join(type_of(x) if _is_traced(x) else repr(x) for x in leaves)


def _counts(node: Any) -> tuple[dict[str, int], int]:
    """By kind, how many numbers the Variables below a node hold; and their bytes."""
    counts: dict[str, int] = {}
    bytes = 0
    for _, variable in variables_of(node):
        for x in filter(is_array, jax.tree.leaves(variable.raw_value)):
            is_random = isinstance(variable, RngState)
            kinds = ["RngState" if is_random else variable.type.__name__]
            for kind in [*kinds, *["frozen"] * variable._metadata.is_frozen]:
                counts[kind] = counts.get(kind, 0) + x.size
            bytes += x.size * x.dtype.itemsize
    return counts, bytes


_WORDS = ("path", "type", "inputs", "outputs")  # columns that are no numbers


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    """The heads, and the text of each cell; columns without content are left out."""
    kinds = {kind for row in rows for kind in row.counts}
    columns: dict[str, Callable[[Row], str]] = {
        "path": lambda row: format_path(row.path) if row.path else "",
        "type": lambda row: row.type + (f" x{row.calls}" if row.calls > 1 else ""),
        "inputs": lambda row: row.inputs or "",
        "outputs": lambda row: row.outputs or "",
        **{
            kind: lambda row, kind=kind: f"{row.counts.get(kind, 0):,}"
            for kind in sorted(kinds, key=lambda x: (x != "Param", x != "frozen", x))
        },
        "bytes": lambda row: f"{row.bytes:,}",
        "share": lambda row: f"{row.share:.1%}",
        "FLOPs": lambda row: "" if row.flops is None else f"{row.flops:,.0f}",
        "with gradients": lambda row: (
            "" if row.vjp_flops is None else f"{row.vjp_flops:,.0f}"
        ),
    }
    filled = {name: [cell(row) for row in rows] for name, cell in columns.items()}
    kept = {k: x for k, x in filled.items() if any(x) or k in ("path", "type")}
    return [list(kept), *map(list, zip(*kept.values(), strict=True))]
