"""What the compiler of the device makes of matrix products: the instructions they were written for, and no spills."""

from __future__ import annotations

import pytest
from machine_code import Code, machine_code, needs_disassembler

from coilc.codegen.build import build_object
from coilc.codegen.target import TARGETS
from coilc.ir import Graph, parse_graph

pytestmark = needs_disassembler


def product(
    rows: int, dtype: str, *, inner: int = 4096, columns: int = 512, prologue: bool = False, turned: bool = False
) -> Graph:
    """x @ w + bias; the weight perhaps [N, K], the left operand perhaps computed."""
    weight, right = (f"[{columns}, {inner}]", "w") if turned else (f"[{inner}, {columns}]", "x1")
    lines = [
        *([f"v: {dtype}[{rows}, {inner}] = neg(x0)"] if prologue else []),
        *([f"w: {dtype}[{inner}, {columns}] = transpose(x1, perm=(1, 0))"] if turned else []),
        f"v0: {dtype}[{rows}, {columns}] = matmul({'v' if prologue else 'x0'}, {right})",
        f"v1: {dtype}[{rows}, {columns}] = broadcast(x2, dims=({rows}, {columns}))",
        f"y: {dtype}[{rows}, {columns}] = add(v0, v1)",
    ]
    head = f"def body(x0: {dtype}[{rows}, {inner}], x1: {dtype}{weight}, x2: {dtype}[{columns}]):\n"
    return parse_graph(head + "".join(f"    {line}\n" for line in lines) + "    return {'y': y}\n")


def gated(rows: int) -> Graph:
    """gelu(x @ w^T) * gate, of an odd number of columns, which are written one by one."""
    return parse_graph(f"""def body(x0: bf16[{rows}, 512], x1: bf16[515, 512], x2: bf16[{rows}, 515]):
    w: bf16[512, 515] = transpose(x1, perm=(1, 0))
    v0: bf16[{rows}, 515] = matmul(x0, w)
    c: f32[()] = constant(value=array(f32, 0.70710678))
    half: f32[{rows}, 515] = broadcast(c, dims=({rows}, 515))
    v1: f32[{rows}, 515] = cast(v0, dtype=f32)
    v2: f32[{rows}, 515] = mul(v1, half)
    v3: f32[{rows}, 515] = erf(v2)
    v4: f32[{rows}, 515] = mul(v1, v3)
    v5: f32[{rows}, 515] = add(v1, v4)
    v6: bf16[{rows}, 515] = cast(v5, dtype=bf16)
    y: bf16[{rows}, 515] = mul(v6, x2)
    return {{'y': y}}
""")


BODIES = {
    "large": product(65536, "bf16"),
    "large_turned": product(65536, "f16", turned=True),
    "large_gated": gated(65536),
    "middle": product(4096, "bf16"),
    "narrow": product(2048, "bf16"),
    "low": product(64, "bf16"),
    "one_step": product(65536, "bf16", inner=40),
    "computed": product(65536, "bf16", prologue=True),
    "odd": product(512, "f16", inner=4099),
    "one": product(1, "bf16"),
    "one_turned": product(1, "bf16", turned=True),
    "one_turned_short": product(1, "bf16", inner=160, columns=5120, turned=True),
    "exact": product(65536, "f32"),
}


@pytest.fixture(scope="module", params=[name for name, target in TARGETS.items() if target.device])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, dict[str, Code]]:
    """Whether the device has warpgroups, and the only kernel of every body."""
    target = TARGETS[request.param]
    assert target.device is not None
    path = tmp_path_factory.mktemp("code") / "kernels.o"
    build_object(BODIES, target, path)
    codes = {name.removesuffix("_kernel"): code for name, code in machine_code(path.with_suffix(".fatbin")).items()}
    assert codes.keys() == BODIES.keys()
    return target.device.warpgroups, codes


def test_no_kernel_spills(compiled: tuple[bool, dict[str, Code]]) -> None:
    """Except for one register of the low tiles of ``mma.sync``, for which a fifth block fits on a multiprocessor."""
    stacks = {name: code.stack for name, code in compiled[1].items() if code.stack}
    assert all(name in ("low", "middle") and size <= 8 for name, size in stacks.items()), stacks


def test_products_of_16_bits_use_the_tensor_cores(compiled: tuple[bool, dict[str, Code]]) -> None:
    warpgroups, codes = compiled
    for name in ("large", "large_turned", "large_gated", "middle", "narrow", "low", "one_step"):
        assert codes[name].has(*(("HGMMA", "UTMALDG") if warpgroups else ("HMMA.16816.F32", "LDSM"))), name
    for name in ("computed", "odd"):
        assert codes[name].has("HMMA.16816.F32", "LDSM"), name
    assert codes["computed"].registers <= 128  # two blocks of 256 threads at a time


def test_warpgroups_store_from_registers(compiled: tuple[bool, dict[str, Code]]) -> None:
    """Threads that copy give registers away; the epilogue is short code, in vectors where the columns allow them."""
    warpgroups, codes = compiled
    if not warpgroups:
        pytest.skip("the device has none")
    for name in ("large", "large_turned", "large_gated"):
        code = codes[name]
        assert code.has("USETMAXREG.TRY_ALLOC", "USETMAXREG.DEALLOC", "SHFL.BFLY"), name
        assert code.registers == 168, name  # of 65536, for 384 threads
        assert sum(i.startswith("HGMMA.64x256x16") for i in code.instructions) % 4 == 0, name
        assert not code.has("STS"), name
        assert len(code.instructions) < 4096, name
    assert codes["large"].has("LDG.E.64", "STG.E.64")


def test_one_row_reads_the_weight_in_vectors(compiled: tuple[bool, dict[str, Code]]) -> None:
    """On Hopper, whose kernels have no ``__restrict__``, all that a thread asks for at a time are under way together."""
    warpgroups, codes = compiled
    for name in ("one", "one_turned", "one_turned_short"):
        assert codes[name].at_a_time("LDG.E.128") >= (4 if warpgroups else 1), name


def test_exact_products_read_shared_memory_in_vectors(compiled: tuple[bool, dict[str, Code]]) -> None:
    code = compiled[1]["exact"]
    assert code.has("LDS.128", "FFMA")
    assert code.registers <= 128  # two blocks of 256 threads at a time
