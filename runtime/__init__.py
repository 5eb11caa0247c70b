"""Running artifacts: NumPy and ctypes only, nothing of the compiler."""

from .artifact import Artifact, read_artifact
from .errors import ArtifactError, InputError, RunError
from .model import Model, Traced, load

__all__ = ["Artifact", "ArtifactError", "InputError", "Model", "RunError", "Traced", "load", "read_artifact"]
