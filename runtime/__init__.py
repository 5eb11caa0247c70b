"""Running artifacts: NumPy and ctypes only, nothing of the compiler."""

from .artifact import Artifact, read_artifact
from .errors import ArtifactError, InputError, RunError, StateError
from .model import Model, Traced, load
from .session import Session

__all__ = [
    "Artifact",
    "ArtifactError",
    "InputError",
    "Model",
    "RunError",
    "Session",
    "StateError",
    "Traced",
    "load",
    "read_artifact",
]
