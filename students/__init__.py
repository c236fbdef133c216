"""Every architecture, written once, and the run folders that hold trained models.

`students.from_published` turns published weights into a network; it is imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from students.published import from_published

__all__ = ["from_published"]


def __getattr__(name: str) -> Any:
    """torch and transformers take seconds, which `import students` alone should not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from students import published

    return getattr(published, name)
