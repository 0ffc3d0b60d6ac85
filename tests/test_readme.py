"""The README's examples run, one after the other, and do what they say."""

import re
from pathlib import Path
from typing import Any

import numpy as np


def test_the_examples_run():
    text = (Path(__file__).parent.parent / "README.md").read_text()
    names: dict[str, Any] = {"__name__": "readme"}
    for example in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(example, "README.md", "exec"), names)

    assert names["loss"] < 0.1 and names["model"].calls.value > 0
    x = names["x"]
    np.testing.assert_array_equal(names["other"](x), names["model"](x))
