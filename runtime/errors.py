"""What can go wrong when an artifact is loaded or run; each message is one sentence: what, where, and the fix."""

from __future__ import annotations


class ArtifactError(Exception):
    """An artifact is missing, damaged, or made for another machine or another version."""


class InputError(Exception):
    """A value given to a model does not fit its signature."""


class RunError(Exception):
    """The native runtime refused to run: out of memory, a kernel that failed, a session used from two threads."""


class StateError(Exception):
    """A saved state is damaged, of another model, or of a newer version."""
