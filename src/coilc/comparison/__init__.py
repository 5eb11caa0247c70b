"""An artifact against eager PyTorch: outputs, the values inside the model, speed and sizes."""

from .metrics import TOLERANCE, Difference, difference
from .report import Report, Row, Speed
from .side_by_side import compare

__all__ = ["TOLERANCE", "Difference", "Report", "Row", "Speed", "compare", "difference"]
