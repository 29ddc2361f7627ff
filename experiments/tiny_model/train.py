"""Trains the bundled model and writes it to data/tiny: `python experiments/tiny_model/train.py`.

Tokenizer, constructed start, then stages of growing length. Each finished stage is kept under `--work`, so that a
stopped run continues with the next one; a changed recipe or seed starts anew.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from circuit import construct  # noqa: E402
from network import CONFIG, Llama  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tokenizer import build, save  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from tqdm import tqdm  # noqa: E402

from data import IGNORE, Batch, Sampler  # noqa: E402


@dataclass(frozen=True)
class Stage:
    """`steps` steps of about `tokens` tokens, of lengths drawn from `lengths`; the rate goes from `lr` to `end_lr`."""

    steps: int
    tokens: int
    lengths: dict[int, float]
    lr: float
    end_lr: float


MIX = {"agent": 0.4, "retrieval": 0.3, "chat": 0.1, "repeats": 0.2}
STAGES = (
    Stage(300, 2048, {128: 0.3, 256: 0.7}, 2e-3, 2e-3),
    Stage(160, 4096, {256: 0.2, 1024: 0.8}, 2e-3, 1.2e-3),
    Stage(160, 4608, {512: 0.15, 1024: 0.15, 2304: 0.7}, 1.2e-3, 7e-4),
    Stage(220, 6144, {512: 0.1, 2304: 0.4, 4096: 0.4, 6144: 0.1}, 7e-4, 1e-5),
)
WARMUP = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "tiny", help="the model folder to write")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "tiny_model", help="keeps finished stages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="one is faster where others use the machine")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    recipe = recipe_hash()  # of the files that this run began with
    work = arguments.work / f"{recipe}-{arguments.seed}"
    save(build(), work / "tokenizer")
    tokenizer = Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))
    model = Llama()
    construct(model, arguments.seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.01)
    log: list[dict[str, float]] = []
    for number, stage in enumerate(STAGES, start=1):
        kept = work / f"stage-{number}.pt"
        if kept.exists():
            state = torch.load(kept, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            log = state["log"]
            continue
        started = time.time()
        last = train_stage(model, optimizer, Sampler(tokenizer, f"{arguments.seed}/{number}"), stage, number)
        log.append({"seconds": round(time.time() - started), **last})
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "log": log}
        torch.save(state, kept.with_suffix(".tmp"))
        kept.with_suffix(".tmp").rename(kept)
        write_model(model, work / "tokenizer", arguments.out, recipe, arguments.seed, log)
    write_model(model, work / "tokenizer", arguments.out, recipe, arguments.seed, log)
    print(f"wrote {arguments.out}; measure it with: python experiments/tiny_model/evaluate.py", file=sys.stderr)


def train_stage(
    model: Llama, optimizer: torch.optim.Optimizer, sampler: Sampler, stage: Stage, number: int
) -> dict[str, float]:
    """Trains one stage; returns the mean loss and token accuracy of its last steps."""
    sources = {length: sampler.batches(stage.tokens, length, MIX) for length in stage.lengths}
    losses, rights = [], []
    progress = tqdm(range(stage.steps), desc=f"stage {number}/{len(STAGES)}", mininterval=10, file=sys.stderr)
    for step in progress:
        done = step / stage.steps
        rate = stage.lr + (stage.end_lr - stage.lr) * done
        if number == 1:
            rate *= min(1.0, (step + 1) / WARMUP)
        for group in optimizer.param_groups:
            group["lr"] = rate
        length = sampler.rng.choices(list(stage.lengths), list(stage.lengths.values()))[0]
        loss, right = train_step(model, optimizer, next(sources[length]))
        losses.append(loss)
        rights.append(right)
        progress.set_postfix(loss=f"{_recent(losses):.4f}", right=f"{_recent(rights):.4f}", refresh=False)
    return {"loss": round(_recent(losses), 5), "token_accuracy": round(_recent(rights), 5)}


def train_step(model: Llama, optimizer: torch.optim.Optimizer, batch: Batch) -> tuple[float, float]:
    logits = model(batch.ids, batch.rows).flatten(0, 1)
    targets = batch.targets.flatten()
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORE)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    counted = targets != IGNORE
    right = (logits.argmax(-1) == targets)[counted].float().mean()
    return loss.item(), right.item()


def write_model(model: Llama, tokenizer_folder: Path, out: Path, recipe: str, seed: int, log: list[dict]) -> None:
    """Replaces the model folder at once: readers see the old one or the new one, never half of each."""
    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(tokenizer_folder, fresh)
    weights = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, str(fresh / "model.safetensors"), metadata={"format": "pt"})
    (fresh / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
    shutil.copy(HERE / "model_card.md", fresh / "README.md")
    config = {**CONFIG, "bos_token_id": None, "eos_token_id": 2296, "pad_token_id": 2294}
    vocabulary = Tokenizer.from_file(str(fresh / "tokenizer.json"))
    config["eos_token_id"] = vocabulary.token_to_id("<|im_end|>")
    config["pad_token_id"] = vocabulary.token_to_id("<|endoftext|>")
    generation = {"do_sample": False, "eos_token_id": config["eos_token_id"], "pad_token_id": config["pad_token_id"]}
    record = {
        "recipe": "experiments/tiny_model/train.py",
        "recipe_hash": recipe,
        "seed": seed,
        "torch": torch.__version__,
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "stages": [{**asdict(stage), **done} for stage, done in zip(STAGES, log, strict=False)],
    }
    for name, content in (("config", config), ("generation_config", generation), ("provenance", record)):
        (fresh / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def recipe_hash() -> str:
    """Hash of the code that makes the model, the generators of its text included; comments and docstrings aside."""
    sources = [path for path in HERE.glob("*.py") if path.name != "evaluate.py"]  # measuring changes no model
    sources += [ROOT / "kvlab" / "workloads" / f"{name}.py" for name in ("agent", "chat", "desk", "retrieval", "words")]
    digest = hashlib.sha256((HERE / "chat_template.jinja").read_bytes())
    for path in sorted(sources):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body[0] = ast.Pass()
        digest.update(path.name.encode() + b"\0" + ast.unparse(tree).encode() + b"\0")
    return digest.hexdigest()[:16]


def _recent(values: list[float], n: int = 30) -> float:
    return sum(values[-n:]) / len(values[-n:])


if __name__ == "__main__":
    main()
