"""Checks of values in compiled code: see `nnx.error_if`, which makes them.

A check raises its error in a callback, and JAX wraps it. `raise_own` finds it again.
"""

import threading

from .workarounds import let_callbacks_raise


class _Checks(threading.local):
    """The checks of this thread.

    Attributes:
      count: how many there were in what it has traced.
    """

    count: int = 0


checks: _Checks = _Checks()
failures: list[Exception] = []  # the last errors that were raised
let_callbacks_raise(failures)


def raise_own(error: Exception) -> None:
    """Raises what a check has raised, if that is what an error of JAX tells of."""
    for failure in reversed(failures):
        if f"{type(failure).__name__}: {failure}" in str(error):
            failures.remove(failure)
            raise failure from None
