"""Every command on good input: what it prints, writes and returns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from coilc.ir import OPS, parse_graph

from .conftest import Cli


def test_help_names_every_command(cli: Cli) -> None:
    done = cli("--help")
    assert done.code == 0
    for command in (
        "compile",
        "run",
        "bundle",
        "compare",
        "bench",
        "inspect",
        "ops",
        "opt",
        "explain",
        "targets",
        "doctor",
    ):
        assert command in done.out


def test_version(cli: Cli) -> None:
    assert cli("--version").out == "coilc 0.1.0\n"


def test_compile_writes_an_artifact_and_says_how_large_it_is(cli: Cli, models: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.coil"
    done = cli("compile", f"{models}:scale", "-o", path)
    assert done.code == 0
    assert done.out.startswith(f"{path}: ")
    files = {"code.so", "graph.py", "kernels.o", "manifest.json", "plan.c", "weights.safetensors"}
    assert {file.name for file in path.iterdir()} == files
    assert [line.split()[1] for line in done.err.splitlines()][:3] == ["export", "import", "passes"]


def test_compile_takes_dynamic_dims(cli: Cli, models: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.coil"
    assert cli("compile", f"{models}:fixed", "-o", path, "--dynamic", "x.0=N:1..9").code == 0
    (symbol,) = cli("inspect", path, "--json").json["entries"]["main"]["symbols"]
    assert (symbol["name"], symbol["low"], symbol["high"]) == ("N", 1, 9)


def test_compile_stores_less(cli: Cli, models: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.coil"
    assert cli("compile", f"{models}:scale", "-o", path, "--precision", "bf16", "--quantize", "int8").code == 0
    assert ", precision bf16, int8 weights\n" in cli("inspect", path).out
    options = cli("inspect", path, "--json").json["options"]
    assert (options["precision"], options["quantize"]) == ("bf16", "int8")
    done = cli("compile", f"{models}:scale", "--precision", "fp8")
    assert done.code == 2
    assert "'fp8' is not one of" in done.err


def test_compile_rolls_up_a_loop_from_two_lengths(cli: Cli, models: Path, tmp_path: Path) -> None:
    path, spec = tmp_path / "new.coil", f"{models}:loop"
    assert "give lengths=(7, 11)" in cli("compile", spec, "-o", path).err
    assert cli("compile", spec, "-o", path, "--lengths", "L=7,11").code == 0
    symbols = cli("inspect", path, "--json").json["entries"]["main"]["symbols"]
    assert [(symbol["name"], symbol["low"]) for symbol in symbols] == [("B", 1), ("L", 1)]
    assert cli("compare", spec, path, "--lengths", "7,11", "--runs", 0).code == 0
    zoo = tmp_path / "loops.py"
    zoo.write_text(models.read_text() + '\n\nEXPORT = {"lengths": (7, 11)}\n')
    assert cli("inspect", f"{zoo}:loop", "--json").json["ops"]["scan"] == 1
    assert cli("compare", f"{zoo}:loop", path, "--runs", 0).code == 0


def test_compile_takes_ir_text(cli: Cli, text: Path, tmp_path: Path) -> None:
    done = cli("compile", text, "-o", tmp_path / "t.coil", "--json")
    assert done.code == 0
    assert done.json["bytes"] > done.json["code_bytes"] > 0


def test_run_reads_arrays_and_writes_arrays(cli: Cli, scale: Path, tmp_path: Path) -> None:
    x = np.ones((5, 4), np.float32)
    np.save(tmp_path / "x.npy", x)
    done = cli("run", scale, "--input", f"x={tmp_path / 'x.npy'}", "--output", tmp_path / "out", "--threads", 1)
    assert done.code == 0
    assert "float32" in done.out
    assert np.load(tmp_path / "out" / "logits.npy").shape == (5, 6)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_run_replaces_an_older_result(cli: Cli, scale: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        assert cli("run", scale, "--random", "--seed", seed, "-o", tmp_path / "out").code == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["logits.npy"]


def test_random_inputs_are_seeded_and_sized(cli: Cli, scale: Path) -> None:
    first, again = (cli("run", scale, "--random", "--seed", 3, "--dim", "B=7", "--json").json for _ in range(2))
    assert first["outputs"] == again["outputs"]
    assert first["outputs"][0]["shape"] == [7, 6]
    assert first["outputs"][0]["finite"]


def test_compare_agrees_and_writes_a_report(cli: Cli, models: Path, scale: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = cli("compare", f"{models}:scale", scale, "--report", page, "--runs", 2, "--threads", 1)
    assert done.code == 0
    assert "The artifact computes what PyTorch computes" in done.out
    html = page.read_text()
    assert "<svg" in html
    assert "<script" not in html
    assert "http://" not in html.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )


def test_compare_takes_an_exported_program_and_its_inputs(cli: Cli, tmp_path: Path) -> None:
    model, x = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh()).eval(), torch.randn(2, 4)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "m.pt2")
    np.save(tmp_path / "x.npy", x.numpy())
    path = tmp_path / "m.coil"
    assert cli("compile", tmp_path / "m.pt2", "-o", path).code == 0
    (name,) = (tensor["name"] for tensor in cli("inspect", path, "--json").json["entries"]["main"]["inputs"])
    done = cli("compare", tmp_path / "m.pt2", path, "--input", f"{name}={tmp_path / 'x.npy'}", "--json")
    assert done.code == 0, done.err
    assert done.json["ok"]
    refused = cli("compare", tmp_path / "m.pt2", path)
    assert f"takes the inputs {name}; give each as --input" in refused.err


def test_compare_fails_where_the_models_differ(cli: Cli, models: Path, scale: Path) -> None:
    done = cli("compare", f"{models}:other", scale, "--runs", 0, "--json")
    assert done.code == 1
    assert not done.json["ok"]
    assert done.json["first_failure"] is not None


def test_inspect_shows_a_model(cli: Cli, models: Path) -> None:
    done = cli("inspect", f"{models}:scale")
    assert done.code == 0
    assert "in  x: f32[B, 4]" in done.out
    assert "out logits: f32[B, 6]" in done.out
    assert "dim B: 1 to 64" in done.out


def test_inspect_shows_an_artifact(cli: Cli, scale: Path) -> None:
    done = cli("inspect", scale, "--calls")
    assert done.code == 0
    assert "in  x: f32[B, 4]" in done.out
    assert "code.so" in done.out
    assert "calls of main" in done.out
    assert "f32[B, 6]" in done.out


def test_inspect_prints_the_text_after_a_stage(cli: Cli, text: Path) -> None:
    assert cli("inspect", text, "--stage", "input").out == text.read_text()
    assert "fused" in cli("inspect", text, "--stage", "fuse").out


def test_opt_prints_text_that_parses(cli: Cli, text: Path) -> None:
    done = cli("opt", "decompose,simplify", text)
    assert done.code == 0
    assert {node.op.name for node in parse_graph(done.out).nodes} >= {"maximum", "add"}


def test_explain_lists_reasons(cli: Cli, text: Path) -> None:
    done = cli("explain", text, "decompose", "--fired", "--json")
    assert done.code == 0
    assert done.json[0]["place"].startswith("model.py:7")


def test_explain_follows_the_entries_that_are_asked_for(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "convolution.py"
    path.write_text(
        "def main(x: f32[2, L, 3], k: f32[99, 3], *, L: dim[1:99]):\n"
        "    y: f32[2, L, 3] = long_conv(x, k, optional=())\n"
        '    return {"y": y}\n'
    )
    done = cli("explain", path, "kernel_of_few_states", "--entries", "prefill,step", "--json")
    assert "not known before the run" in done.json[0]["outcome"]


def test_ops_lists_every_op(cli: Cli) -> None:
    assert {row["name"] for row in cli("ops", "--json").json} == set(OPS)


@pytest.mark.parametrize("name", sorted(OPS))
def test_every_op_has_a_card(cli: Cli, name: str) -> None:
    done = cli("ops", name, "--json")
    assert done.code == 0
    card = done.json
    assert card["doc"]
    assert card["kind"] in ("structural", "core", "composite")
    assert bool(card["decomposition"]) == (card["kind"] == "composite")
    assert cli("ops", name).out.startswith(name)


def test_targets_say_what_runs_here(cli: Cli) -> None:
    rows = cli("targets", "--json").json
    assert rows[0]["runs_here"]
    assert {"x86-64-v3", "x86-64-v4", "aarch64"} <= {row["name"] for row in rows}
    extended = {row["name"]: row["extensions"] for row in rows if row["extensions"]}
    assert extended == {"aarch64": ["+dotprod", "+fp16", "+i8mm", "+bf16"]}


def test_doctor_finds_this_machine_fit(cli: Cli) -> None:
    done = cli("doctor", "--json")
    assert done.code == 0, done.out
    assert done.json[-1] == {
        "what": "trial",
        "found": "compiled and ran a small graph",
        "ok": True,
        "fix": "",
        "mark": "✓",
    }


def test_inspect_says_where_the_model_mixes_tokens(cli: Cli) -> None:
    zoo = Path(__file__).resolve().parents[2] / "examples" / "zoo" / "mamba.py"
    rows = {row["op"]: row for row in cli("inspect", f"{zoo}:build", "--json").json["mixers"]}
    assert {op: row["count"] for op, row in rows.items()} == {"causal_conv1d": 2, "selective_scan": 2}
    assert rows["selective_scan"]["result"] == "f32[B, L, 40]"
    assert rows["selective_scan"]["scopes"] == ["blocks.0.ssm", "blocks.1.ssm"]
    line = int(rows["selective_scan"]["place"].rpartition(":")[2])
    assert "torch.stack(outputs" in zoo.read_text().splitlines()[line - 1]  # where the loop ends
