from .core.variable import Variable as Variable
from .core.kinds import *
from .core.metadata import *
from .core.graph import *
from .core.changes import *
from .core.traversal import *
from .core.module import *
from .core.containers import *
from .core.rngs import *
from .core.filters import *
from .core.state import *
from .core.errors import TraceContextError as TraceContextError
from .transforms.compilation import jit, jit_partial, cached_partial, eval_shape
