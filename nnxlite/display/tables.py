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
from ..core.splitting import merge, split
from ..core.variable import Variable
from ..surgery.interception import intercept
from ..transforms.tracing import eval_shape


class Row(NamedTuple):
    """One Module.

    Attributes:
      path: where it is.
      type: its class.
      inputs, outputs: of its first call, as text; None if it was not called.
      calls: how often it was called.
      counts: by kind of Variable, how many numbers it and what is below it hold.
      bytes: how many bytes they take.
      share: of all Params of the model, between 0 and 1.
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
        heads, cells = _cells(rows)
        table = super().__new__(cls, _text(heads, cells))
        table.rows = rows
        return table

    __repr__ = str.__str__

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The rows by path, as nested dicts of plain values."""
        return {
            format_path(row.path, root="") if row.path else "": {
                **row._asdict(),
                "counts": dict(row.counts),
            }
            for row in self.rows
        }

    def _repr_html_(self) -> str:
        heads, cells = _cells(self.rows)

        def line(tag: str, texts: Sequence[str]) -> str:
            inner = "".join(
                f'<{tag} style="text-align:{"left" if head in _WORDS else "right"};'
                f'padding:2px 10px;white-space:pre">{html.escape(text)}</{tag}>'
                for head, text in zip(heads, texts, strict=True)
            )
            return f"<tr>{inner}</tr>"

        body = "".join(line("td", texts) for texts in cells)
        return f"<table><thead>{line('th', heads)}</thead><tbody>{body}</tbody></table>"


class _Seen:
    """The first call of a Module, as shapes, and how many calls there were."""

    def __init__(self, method: str, args: Any, kwargs: Any):
        self.method = method
        self.inputs = _shapes((args, kwargs))
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
    model is called with shapes only, and is as it was afterwards.

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
      -----------------------------------------------------------------------
                 Sequential  float32[8,2]  float32[8,3]      9     36  100.0%
      layers[0]  Linear      float32[8,2]  float32[8,3]      9     36  100.0%
    """
    if depth is not None and depth < 0:
        raise ValueError(f"nnx.tabulate: depth must not be negative, and is {depth}")
    seen: dict[int, _Seen] = {}

    def watch(next: Any, args: Any, kwargs: Any, call: Call) -> Any:
        first = seen.setdefault(id(call.module), _Seen(call.method_name, args, kwargs))
        first.calls += 1
        is_first = first.calls == 1
        result = next(*args, **kwargs)
        if is_first:
            first.result = _shapes(result)
        return result

    if args or kwargs:
        # flags and sizes stay what they are: only arrays and objects are traced
        leaves, treedef = jax.tree.flatten((args, kwargs), is_leaf=_is_object)
        is_traced = [is_array(x) or _is_object(x) for x in leaves]
        traced = [x for x, is_it in zip(leaves, is_traced, strict=True) if is_it]

        def call(*values: Any) -> Any:
            rest, pairs = iter(values), zip(leaves, is_traced, strict=True)
            filled = [next(rest) if is_it else x for x, is_it in pairs]
            args, kwargs = treedef.unflatten(filled)
            return getattr(model, method)(*args, **kwargs)

        with intercept(watch):
            eval_shape(call, *traced)
    matches = to_predicate(only)
    modules = [
        (path, node)
        for path, node in iter_nodes(model)
        if isinstance(node, Module) and (not path or not isinstance(node, (list, dict)))
    ]
    order = {number: place for place, number in enumerate(seen)}
    modules.sort(key=lambda x: (order.get(id(x[1]), len(order)), len(x[0])))
    paths = {path for path, _ in modules}
    whole = _counts(model)[0].get("Param", 0)
    rows = []
    for path, node in modules:
        level = sum(path[:size] in paths for size in range(len(path)))
        if not matches(path, node) or depth is not None and level > depth:
            continue
        counts, size = _counts(node)
        first = seen.get(id(node))
        rows.append(
            Row(
                path,
                type(node).__name__,
                first and _inputs(first.inputs),
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


def _shapes(tree: Any) -> Any:
    """A tree with shapes for arrays and Variables."""
    return jax.tree.map(
        lambda x: _shape(x.value if isinstance(x, Variable) else x),
        tree,
        is_leaf=_is_object,
    )


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_array(leaf) else leaf


def _is_object(value: Any) -> bool:
    return isinstance(value, (Variable, Pytree))


def _described(tree: Any) -> str:
    """The arrays of a tree, as `float32[8,2]`."""
    leaves = jax.tree.leaves(tree, is_leaf=_is_object)
    return ", ".join(
        type_of(x) if is_array(x) else type(x).__name__ if _is_object(x) else repr(x)
        for x in leaves
    )


def _inputs(inputs: tuple[Any, Any]) -> str:
    args, kwargs = inputs
    named = [f"{name}={_described(x)}" for name, x in kwargs.items()]
    return ", ".join([*filter(None, [_described(args)]), *named])


def _counts(node: Any) -> tuple[dict[str, int], int]:
    """By kind, how many numbers the Variables below a node hold; and their bytes."""
    counts: dict[str, int] = {}
    size = 0
    for _, variable in variables_of(node):
        for x in jax.tree.leaves(variable.raw_value):
            if is_array(x):
                name = (
                    "RngState"
                    if isinstance(variable, RngState)
                    else variable.type.__name__
                )
                counts[name] = counts.get(name, 0) + x.size
                size += x.size * x.dtype.itemsize
    return counts, size


def _flops(node: Any, first: _Seen, gradients: bool) -> float:
    """The operations of one call, from the compiled program."""
    graphdef, state = split(node)
    leaves, treedef = jax.tree.flatten((jax.tree.map(_shape, state), first.inputs))
    arrays = [x for x in leaves if is_array(x)]
    floats = [jnp.issubdtype(x.dtype, jnp.inexact) for x in arrays]

    def call(arrays: Sequence[Any]) -> list[Any]:
        rest = iter(arrays)
        filled = treedef.unflatten([next(rest) if is_array(x) else x for x in leaves])
        state, (args, kwargs) = filled
        result = getattr(merge(graphdef, state), first.method)(*args, **kwargs)
        return [x for x in jax.tree.leaves(result) if is_array(x)]

    def with_gradients(arrays: Sequence[Any]) -> Any:
        def of_floats(values: Sequence[Any]) -> list[Any]:
            rest = iter(values)
            whole = [
                next(rest) if is_float else x
                for x, is_float in zip(arrays, floats, strict=True)
            ]
            outputs = call(whole)
            return [y for y in outputs if jnp.issubdtype(y.dtype, jnp.inexact)]

        values = [x for x, is_float in zip(arrays, floats, strict=True) if is_float]
        outputs, pull = jax.vjp(of_floats, values)
        return outputs, pull([jnp.ones_like(y) for y in outputs])

    compiled = jax.jit(with_gradients if gradients else call).lower(arrays).compile()
    costs: Any = compiled.cost_analysis()
    return float(costs.get("flops", 0.0)) if isinstance(costs, Mapping) else 0.0


# Layout

_WORDS = ("path", "type", "inputs", "outputs")  # columns that are no numbers


def _cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The heads, and the text of each cell; columns without content are left out."""
    kinds = sorted({kind for row in rows for kind in row.counts}, key=_kind_order)
    columns: dict[str, Callable[[Row], str]] = {
        "path": lambda row: format_path(row.path) if row.path else "",
        "type": lambda row: row.type + (f" x{row.calls}" if row.calls > 1 else ""),
        "inputs": lambda row: row.inputs or "",
        "outputs": lambda row: row.outputs or "",
        **{k: lambda row, k=k: f"{row.counts.get(k, 0):,}" for k in kinds},
        "bytes": lambda row: f"{row.bytes:,}",
        "share": lambda row: f"{row.share:.1%}",
        "FLOPs": lambda row: "" if row.flops is None else f"{row.flops:,.0f}",
        "with gradients": lambda row: (
            "" if row.vjp_flops is None else f"{row.vjp_flops:,.0f}"
        ),
    }
    filled = {name: [cell(row) for row in rows] for name, cell in columns.items()}
    kept = {k: x for k, x in filled.items() if any(x) or k in ("path", "type")}
    return list(kept), [list(texts) for texts in zip(*kept.values(), strict=True)]


def _kind_order(kind: str) -> tuple[bool, str]:
    return kind != "Param", kind


def _text(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [heads, *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [
        "  ".join(
            x.ljust(n) if head in _WORDS else x.rjust(n)
            for head, x, n in zip(heads, line, widths, strict=True)
        ).rstrip()
        for line in lines
    ]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([texts[0], rule, *texts[1:]])
