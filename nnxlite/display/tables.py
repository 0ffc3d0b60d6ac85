"""Tables: what each Module of a model takes, gives, holds and costs."""

import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..core.filters import Filter, to_predicate
from ..core.graph import variables_of
from ..core.module import Module, iter_nodes
from ..core.paths import Path, format_path, order
from ..core.reprs import totals
from ..core.rngs import RngState
from ..surgery.first_calls import described, first_calls
from ..surgery.paths import size_of

_WORDS = ("path", "type", "inputs", "outputs")  # columns that are no numbers


class Row(NamedTuple):
    """One Module.

    Attributes:
      path: where it is.
      type: its class.
      inputs, outputs: of its first call, as text; None if it was not called.
      calls: how often it was called.
      counts: by kind of Variable, how many numbers it and what is below it hold; and
        how many of them are `frozen`.
      bytes: of all arrays at or below it.
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
        texts = []
        for head, *cells in _columns(rows):
            width = max(map(len, (head, *cells)))
            side = str.ljust if head in _WORDS else str.rjust
            texts.append([side(x, width) for x in (head, "-" * width, *cells)])
        lines = ("  ".join(line).rstrip() for line in zip(*texts, strict=True))
        table = super().__new__(cls, "\n".join(lines))
        table.rows = rows
        return table

    __repr__ = str.__str__

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The rows by path, as nested dicts of plain values."""
        return {_path(x): x._asdict() | {"counts": dict(x.counts)} for x in self.rows}

    def _repr_html_(self) -> str:
        texts = []
        for head, *cells in _columns(self.rows):
            side = "left" if head in _WORDS else "right"
            style = f' style="text-align:{side};padding:2px 10px;white-space:pre">'
            column = [("th", head), *(("td", x) for x in cells)]
            texts.append([f"<{t}{style}{html.escape(x)}</{t}>" for t, x in column])
        lines = (f"<tr>{''.join(line)}</tr>" for line in zip(*texts, strict=True))
        return f"<table>{''.join(lines)}</table>"


def _path(row: Row) -> str:
    return format_path(row.path) if row.path else ""


def _columns(rows: Sequence[Row]) -> list[list[str]]:
    """Heads with the texts below them; columns without content are left out."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:,.0f}"

    kinds = {kind for row in rows for kind in row.counts}
    columns = [
        ["path", *map(_path, rows)],
        ["type", *(row.type + f" x{row.calls}" * (row.calls > 1) for row in rows)],
        ["inputs", *(row.inputs or "" for row in rows)],
        ["outputs", *(row.outputs or "" for row in rows)],
        *(
            [kind, *(number(row.counts.get(kind, 0)) for row in rows)]
            for kind in sorted(kinds, key=lambda x: (x != "Param", x != "frozen", x))
        ),
        ["bytes", *(number(row.bytes) for row in rows)],
        ["share", *(f"{row.share:.1%}" for row in rows)],
        ["FLOPs", *(number(row.flops) for row in rows)],
        ["with gradients", *(number(row.vjp_flops) for row in rows)],
    ]
    return [x for x in columns if any(x[1:]) or x[0] in ("path", "type")]


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
      compute_vjp_flops: likewise with the gradients of Params and inputs.
      **kwargs: what the method is called with.

    Raises:
      ValueError: for a negative depth, or if there is no Module.

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
    calls = first_calls(model, method, args, kwargs) if args or kwargs else []
    firsts = {id(x.module): (number, x) for number, x in enumerate(calls)}
    modules = [
        (path, node)
        for path, node in iter_nodes(model)
        if isinstance(node, Module) and (not path or not isinstance(node, (list, dict)))
    ]
    if not modules:
        raise ValueError(f"nnx.tabulate: no Module in a {type(model).__name__}")
    paths, rows = {path for path, _ in modules}, []
    matches, whole = to_predicate(only), _counts(model).get("Param", 0)
    for path, node in modules:
        level = sum(path[:size] in paths for size in range(len(path)))
        if not matches(path, node) or depth is not None and level > depth:
            continue
        counts, (place, first) = _counts(node), firsts.get(id(node), (len(calls), None))
        row = Row(
            path,
            type=type(node).__name__,
            inputs=first and described(*first.inputs),
            outputs=first and described([first.result], {}),
            calls=first.count if first else 0,
            counts=counts,
            bytes=totals(node)[1],
            share=counts.get("Param", 0) / whole if whole else 0.0,
            flops=first.flops() if first and compute_flops else None,
            vjp_flops=first.flops(True) if first and compute_vjp_flops else None,
        )
        rows.append((place, [*map(order, path)], row))
    return Table([row for *_, row in sorted(rows, key=lambda x: x[:2])])


def _counts(node: Any) -> dict[str, int]:
    """By kind, how many numbers the Variables below a node hold."""
    counts: dict[str, int] = {}
    for _, variable in variables_of(node):
        is_random = isinstance(variable, RngState)
        kind = "RngState" if is_random else variable.type.__name__
        for name in [kind, *["frozen"] * variable._metadata.is_frozen]:
            counts[name] = counts.get(name, 0) + size_of(variable)
    return counts
