"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A .pt2 file, IR text (.py), a .coil folder, or file.py:function.")
]
Artifact = Annotated[Path, typer.Argument(metavar="NAME.coil", help="A compiled artifact.")]
Dynamic = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer evaluates this on Python 3.10
    typer.Option("--dynamic", metavar="INPUT.AXIS=NAME:LOW..HIGH", help="A dim that may vary, as in ids.1=L:1..8192."),
]
Lengths = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--lengths", metavar="NAME=A,B", help="Trace at two lengths: for a Python loop over that dim."),
]
States = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--state",
        metavar="INPUT=OUTPUT",
        help="An input that a session keeps, and the output that it is next, as in h=h_next.",
    ),
]
Target = Annotated[str, typer.Option("--target", "-t", help="What to compile for; 'coilc targets' lists them.")]
Entries = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--entries", help="Entries to keep, comma-separated; prefill and step can be derived. All by default."
    ),
]
Entry = Annotated[str, typer.Option("--entry", help="Which entry of the model.")]
Threads = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--threads", min=1, help="Threads to run with.", show_default="COILC_THREADS, or all cores"),
]
Algorithm = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--algorithm",
        metavar="NAME",
        help="How every recurrence runs: sequential, chunked, associative or wavefront.",
        show_default="the cost model chooses for each",
    ),
]


class PrecisionName(str, Enum):
    """What weights and values between kernels are stored as."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


Precision = Annotated[
    PrecisionName,
    typer.Option("--precision", help="What weights and activations are stored as; arithmetic and states stay fp32."),
]


class WeightFormat(str, Enum):
    """How the weights of products are quantised."""

    INT8 = "int8"
    INT4 = "int4"


Quantize = Annotated[
    Optional[WeightFormat],  # noqa: UP045
    typer.Option("--quantize", help="Store the weights of products in so few bits, and multiply integers."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of random inputs.")]
