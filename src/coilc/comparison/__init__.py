"""An artifact against eager PyTorch: outputs, the values inside the model, speed and sizes."""

from .compare import compare
from .metrics import TOLERANCE, Difference, difference
from .report import Report, Row, Speed

__all__ = ["TOLERANCE", "Difference", "Report", "Row", "Speed", "compare", "difference"]
