"""What users intercept and capture; how it works is in `core.interception`."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax

from ..core import interception
from ..core.arrays import is_array
from ..core.changes import pop, set_child, update
from ..core.filters import All, Filter, to_predicate
from ..core.graph import variables_of
from ..core.interception import CALL, CREATION, READ, Among, Call, Interceptor
from ..core.kinds import Intermediate, Param
from ..core.module import Pytree, iter_nodes
from ..core.paths import format_path
from ..core.sowing import sow
from ..core.state import State, flat_pairs
from ..core.variable import Variable
from ..transforms.captures import View, unbound


def intercept(
    function: Callable[..., Any], /, *, only: Filter = ...
) -> contextlib.AbstractContextManager[None]:
    """A context in which a function stands in the way of every method call.

    The methods are the public ones of Modules, and `__call__`; not those that were
    bound before, as in `f = model.encode`. Of several interceptors the one entered
    first is called first. In compiled functions they run while JAX traces. `nnx.jit`
    does not use a program then that was compiled without them; plain `jax.jit` does.

    While one is active, in any thread, each method call costs some microseconds.

    Args:
      function: `(next, args, kwargs, call) -> result`, where `next(*args, **kwargs)`
        goes on to the method and `call` tells its `module`, `method_name` and `path`
        below the Module that was called first.
      only: which Modules.

    Raises:
      TypeError: if the function returns None though the method does not.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu)
      >>> def log(next, args, kwargs, call):
      ...     print(call.path, call.method_name)
      ...     return next(*args, **kwargs)
      >>> with nnx.intercept(log, only=nnx.Linear):
      ...     y = model(jnp.ones(2))
      ('layers', 0) __call__
    """
    return interception.entered(Interceptor(CALL, function, to_predicate(only)))


def hook(
    model: Any, function: Callable[..., Any], /, *, only: Filter | None = None
) -> Callable[[], None]:
    """Lets a function stand in the way of the calls of one model until it is removed.

    Args:
      model: a Module; those below it are meant too, as far as `only` says.
      function: see `intercept`.
      only: which of them, by default the Module itself.

    Returns:
      a function that removes the hook. Copies of the model have none.

    Raises:
      ValueError: if no Module matches.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> remove = nnx.hook(layer, lambda next, args, kwargs, call: 2 * next(*args))
      >>> twice = layer(jnp.ones(2))
      >>> remove()
      >>> bool((twice == 2 * layer(jnp.ones(2))).all())
      True
    """
    if only is None:
        modules = [model]
    else:
        matches = to_predicate(only)
        modules = [node for path, node in iter_nodes(model) if matches(path, node)]
    if not modules:
        raise ValueError(f"no Module in {type(model).__name__} matches only={only!r}")
    return interception.hooked(Interceptor(CALL, function, Among(modules)))


def intercept_variables(
    *,
    get: Callable[[Variable[Any], Any], Any] | None = None,
    create: Callable[[Variable[Any], Any], Any] | None = None,
    only: Filter = Param,
) -> contextlib.AbstractContextManager[None]:
    """A context in which functions change what Variables show, or are made with.

    What is stored is not changed by `get`, and not read through it by the optimizer,
    `nnx.state` and the transforms.

    Args:
      get: `(variable, value) -> value`, called whenever the value is read.
      create: `(variable, value) -> value`, called when a Variable is made.
      only: which Variables; no path is known.

    Raises:
      TypeError: if a function returns None.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> with nnx.intercept_variables(get=lambda v, x: x.astype(jnp.bfloat16)):
      ...     layer(jnp.ones(2, jnp.bfloat16)).dtype
      dtype(bfloat16)
      >>> with nnx.intercept_variables(create=lambda v, x: jnp.zeros_like(x)):
      ...     print(nnx.Linear(2, 1, rngs=nnx.Rngs(0)).kernel)
      Param(value=Array([[0.], [0.]], dtype=float32))
    """
    matches = to_predicate(only)

    @contextlib.contextmanager
    def both() -> Iterator[None]:
        with contextlib.ExitStack() as contexts:
            for verb, function in ((READ, get), (CREATION, create)):
                if function is not None:
                    one = Interceptor(verb, function, matches)
                    contexts.enter_context(interception.entered(one))
            yield

    return both()


def named_scopes(on: bool = True) -> contextlib.AbstractContextManager[None]:
    """A context in which profiles and HLO show Modules by path, as `Net/layers[0]`.

    Each call of a Module is in a `jax.named_scope`. What is compiled in the context
    has the names; with `on=False` nothing happens.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> with nnx.named_scopes():
      ...     program = nnx.jit(model).lower(jnp.ones(2)).compile().as_text()
      >>> 'Sequential/layers[0]' in program
      True
    """
    if not on:
        return contextlib.nullcontext()
    return intercept(_in_scope)


def _in_scope(next: Any, args: Any, kwargs: Any, call: Call) -> Any:
    path, caller = call.path, call.caller
    if caller is not None and path[: len(caller)] == caller:
        path = path[len(caller) :]
    name = format_path(path) if path else type(call.module).__name__
    if call.method_name != "__call__":
        name += f".{call.method_name}"
    with jax.named_scope(name):
        return next(*args, **kwargs)


def capture(
    function: Any,
    /,
    *kinds: type[Variable[Any]],
    init: Any = None,
    method_outputs: type[Variable[Any]] | None = None,
    only: Filter = ...,
) -> Any:
    """A function that also returns what is sown while it runs.

    Nothing is left behind in the model. What it held of these kinds before is put
    aside for the time of the call.

    Args:
      function: a Module, a bound method, or a function of Modules. A kind gives a
        decorator: `@nnx.capture(nnx.Intermediate)`.
      *kinds: the kinds of Variables to capture, by default Intermediates.
      init: a State (for several Modules: a dict of States) that they start with, such
        as Perturbations.
      method_outputs: a kind of which every method of the Modules leaves its output,
        under the method's name, as `state['layers'][0]['__call__']`. It is what the
        method gave, before interceptors that were entered earlier changed it.
      only: which Modules leave outputs. Those that a loop or a branch calls cannot, nor
        can those that all slices of a vmap share: leave them out, or capture inside.

    Returns:
      a function that gives `(result, state, ...)`, with a State for each kind. The
      paths begin at the Module; if the function has several among its arguments, with
      the position or name of the argument.

    Raises:
      ValueError: when it is called, if there is no Module.

    Example:
      >>> import jax.numpy as jnp, nnxlite as nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu)
      >>> watched = nnx.capture(model, method_outputs=nnx.Intermediate)
      >>> y, state = watched(jnp.ones((4, 2)))
      >>> state.layers[0]['__call__'].value[0].shape
      (4, 3)
    """
    if isinstance(function, type) and issubclass(function, Variable):
        options = {"init": init, "method_outputs": method_outputs, "only": only}
        return lambda f: capture(f, function, *kinds, **options)
    kinds = kinds or (method_outputs or Intermediate,)
    if method_outputs is not None and not issubclass(method_outputs, kinds):
        kinds = (*kinds, method_outputs)
    plain, own, _ = unbound(function)

    def watched(*args: Any, **kwargs: Any) -> Any:
        root = _root(plain, (*own, *args), kwargs)
        held = _held(root, kinds)
        before = {id(variable) for _, variable in variables_of(root, kinds)}
        new = [All(kind, lambda _, x: id(x) not in before) for kind in kinds]
        context = contextlib.nullcontext()
        if method_outputs is not None:
            leave = functools.partial(_leaving, method_outputs)
            context = intercept(leave, only=only)
        for owner, key, _ in held:
            delattr(owner, key)
        try:
            if init is not None:
                update(root, init, strict=False)
            with context:
                result = function(*args, **kwargs)
        finally:
            states = pop(root, *new)
            for owner, key, variable in held:
                set_child(owner, key, variable)
        states = states if len(kinds) > 1 else (states,)
        return result, *map(_with_method_names, states)

    return functools.update_wrapper(watched, plain, updated=())


def _held(root: Any, kinds: tuple[Any, ...]) -> list[tuple[Any, Any, Any]]:
    """The attributes and entries that hold Variables of some kinds."""
    return [
        (owner, key, x)
        for _, owner in iter_nodes(root)
        if not isinstance(owner, list)  # taking one out would move the others
        for key, x in owner._nnx_items().items()
        if isinstance(x, kinds)
    ]


def _root(function: Any, args: Any, kwargs: Any) -> Any:
    """The Modules among the arguments, or else those that the function sees."""
    named = {**dict(enumerate(args)), **kwargs}
    roots = {name: x for name, x in named.items() if isinstance(x, Pytree)}
    if not roots:
        seen = [x for x in View(function).look()[0] if isinstance(x, Pytree)]
        roots = dict(enumerate(seen))
    if not roots:
        raise ValueError(
            "nnx.capture finds no Module among the arguments of "
            f"{getattr(function, '__name__', function)!r}: pass the model itself, or "
            "one of its methods, as nnx.capture(model)"
        )
    return roots if len(roots) > 1 else next(iter(roots.values()))


_SUFFIX = "()"  # an attribute of the method's own name would hide the method


def _leaving(kind: Any, next: Any, args: Any, kwargs: Any, call: Call) -> Any:
    result = next(*args, **kwargs)
    leaves = jax.tree.leaves(result)
    if leaves and all(map(is_array, leaves)):
        sow(call.module, kind, call.method_name + _SUFFIX, result)
    return result


def _with_method_names(state: State) -> State:
    return State.from_pairs(
        ((*path[:-1], str(path[-1]).removesuffix(_SUFFIX)), leaf)
        if str(path[-1]).endswith(_SUFFIX)
        else (path, leaf)
        for path, leaf in flat_pairs(state)
    )
