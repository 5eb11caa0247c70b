"""The language: types with symbolic dims, immutable graphs, ops declared once, text that round-trips, an interpreter."""

from . import dims, ops
from .core import Array, Graph, Module, Node, Value
from .dims import Dim, Dims, SymDim, symbol
from .errors import CoilError, InputError, ParseError, TypeRuleError, UnsupportedError, VerifyError
from .interpret import interpret
from .location import Location, at
from .opdef import OPS, OpDef, literal
from .text import parse_graph, parse_graphs, print_graph, print_module
from .types import DTYPES, DType, TensorType, dtype_of, type_of

__all__ = [
    "DTYPES", "OPS", "Array", "CoilError", "DType", "Dim", "Dims", "Graph", "InputError", "Location", "Module", "Node",
    "OpDef", "ParseError", "SymDim", "TensorType", "TypeRuleError", "UnsupportedError", "Value", "VerifyError", "at",
    "dims", "dtype_of", "interpret", "literal", "ops", "parse_graph", "parse_graphs", "print_graph", "print_module",
    "symbol", "type_of",
]  # fmt: skip
