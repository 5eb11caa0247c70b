"""Train the byte-level Mamba language model that the demos use, on the text of Python's standard library.

    python examples/train/language_model.py --output examples/models/stdlib-mamba

The model is transformers' ``MambaForCausalLM`` (1.9M parameters, 256 bytes as the vocabulary) and loads with
``from_pretrained``. Only the scan is written out anew below: the one of transformers copies the sequence at every step,
which is too slow to train with. The loss on files kept apart is written beside the weights.

A GPU does it in ten minutes. On a CPU, ``--steps 200 --batch 8 --length 128`` shows the loss falling.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import MambaConfig, MambaForCausalLM

SUFFIXES = (".py", ".txt", ".rst")
LEFT_OUT = {"test", "tests", "idle_test", "encodings", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
VALIDATION_SHARE = 20  # one file in so many
END = b"\0"  # stands between files


def read_corpus(folder: Path) -> tuple[bytes, bytes]:
    """The text of the library below a folder, split by file into training and validation text."""
    texts: tuple[list[bytes], list[bytes]] = ([], [])
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.suffix in SUFFIXES and not LEFT_OUT & set(name.parts):
            digest = hashlib.sha256(name.as_posix().encode()).digest()
            texts[digest[0] % VALIDATION_SHARE == 0].append(path.read_bytes() + END)
    return b"".join(texts[0]), b"".join(texts[1])


def build_model(layers: int, width: int) -> MambaForCausalLM:
    torch.manual_seed(0)
    shape = {"vocab_size": 256, "hidden_size": width, "num_hidden_layers": layers, "state_size": 16}
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return MambaForCausalLM(MambaConfig(**shape, **special, initializer_range=0.02, tie_word_embeddings=True))


def scan(decay: Tensor, write: Tensor, read: Tensor) -> Tensor:
    """h_t = decay_t h_(t-1) + write_t and y_t = <read_t, h_t>: [L, B, D, N], the same, and [L, B, 1, N], to [L, B, D]."""
    state, states = torch.zeros_like(write[0]), []
    for decay_t, write_t in zip(decay.unbind(), write.unbind(), strict=True):
        state = torch.addcmul(write_t, decay_t, state)
        states.append(state)
    return (torch.stack(states) * read).sum(-1)


def mix(mixer: torch.nn.Module, x: Tensor) -> Tensor:
    """A Mamba mixer (Gu and Dao 2023, section 3.4) on x[L, B, C]."""
    n, rank = mixer.ssm_state_size, mixer.time_step_rank
    u, gate = mixer.in_proj(x).chunk(2, -1)
    u = F.silu(mixer.conv1d(u.permute(1, 2, 0))[..., : len(x)]).permute(2, 0, 1)
    dt, b, c = mixer.x_proj(u).split([rank, n, n], -1)
    dt = F.softplus(mixer.dt_proj(dt))
    decay = torch.exp(dt[..., None] * -mixer.A_log.exp())
    y = scan(decay, (dt * u)[..., None] * b[..., None, :], c[..., None, :]) + mixer.D * u
    return mixer.out_proj(y * F.silu(gate))


def loss_of(model: MambaForCausalLM, ids: Tensor) -> Tensor:
    """Mean cross entropy, in nats per byte, of ids[B, L + 1]."""
    x = model.backbone.embeddings(ids[:, :-1].T)
    for block in model.backbone.layers:
        x = x + torch.utils.checkpoint.checkpoint(
            mix, block.mixer, block.norm(x), use_reentrant=False, preserve_rng_state=False
        )
    logits = model.lm_head(model.backbone.norm_f(x))
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].T.flatten())


def crops(text: Tensor, batch: int, length: int) -> Iterator[Tensor]:
    """Random pieces of the text, for ever: [batch, length + 1]."""
    window = torch.arange(length + 1)
    while True:
        yield text[torch.randint(len(text) - length - 1, (batch, 1)) + window].long()


def schedule(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first fiftieth, then a cosine down to a twentieth of the peak."""
    warm = min(1.0, (step + 1) / (steps / 50))
    return peak * warm * (0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)


def train_step(model: MambaForCausalLM, optimiser: torch.optim.Optimizer, ids: Tensor) -> Callable[[], Tensor]:
    """One step on whatever ``ids`` holds. On a GPU it is recorded once and replayed: a scan is thousands of launches."""

    def step() -> Tensor:
        optimiser.zero_grad(set_to_none=False)
        loss = loss_of(model, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        return loss.detach()

    if ids.device.type != "cuda":
        return step
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay


@torch.no_grad()
def validate(model: MambaForCausalLM, text: Tensor, batch: int, length: int) -> float:
    """Nats per byte over the whole text, cut into consecutive windows."""
    windows = text[: (len(text) - 1) // length * length + 1].unfold(0, length + 1, length).long()
    pieces: Iterable[Tensor] = windows.split(batch)
    return sum(float(loss_of(model, p.to(model.device))) * len(p) for p in pieces) / len(windows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for model.safetensors and config.json")
    parser.add_argument("--library", type=Path, default=Path(sysconfig.get_path("stdlib")))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--rate", type=float, default=4e-3)
    given = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    train, held_out = (torch.frombuffer(bytearray(t), dtype=torch.uint8) for t in read_corpus(given.library))
    model = build_model(given.layers, given.width).to(device)
    print(f"{len(train):,} bytes to train on, {len(held_out):,} held out, {model.num_parameters():,} parameters")

    rate = torch.tensor(given.rate, device=device)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1, capturable=device == "cuda"
    )
    batches = crops(train, given.batch, given.length)
    ids = next(batches).to(device)
    rate.fill_(0.0)  # while the step is recorded
    step = train_step(model, optimiser, ids)
    start = time.perf_counter()
    for n in range(given.steps):
        ids.copy_(next(batches), non_blocking=True)
        rate.fill_(schedule(n, given.steps, given.rate))
        loss = step()
        if n % 50 == 0 or n == given.steps - 1:
            print(f"step {n}  loss {float(loss):.4f} nats/byte  {time.perf_counter() - start:.0f} s", flush=True)

    seconds = time.perf_counter() - start
    nats = validate(model, held_out, given.batch, given.length)
    print(f"held out: {nats:.4f} nats/byte = {nats / math.log(2):.4f} bits/byte after {seconds:.0f} s")
    model.save_pretrained(given.output)
    record = {
        "bits_per_byte_held_out": round(nats / math.log(2), 4),
        "bytes": {"training": len(train), "held_out": len(held_out)},
        "bytes_seen": given.steps * given.batch * given.length,
        "arguments": {k: v for k, v in vars(given).items() if isinstance(v, int | float)},
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "seconds": round(seconds),
    }
    (given.output / "training.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
