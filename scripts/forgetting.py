"""Compare what training learns and what it forgets: new blocks, LoRA, and all of the model.

    python scripts/make_real_model.py demo/source
    python scripts/forgetting.py demo/source --out demo/forgetting
    python scripts/forgetting.py demo/source --out demo/forgetting --report docs/forgetting.svg

Every run starts from the same model and sees the same tokens in the same order: a seed chooses
them. Losses are the mean over tokens of held-out text: of the new text, and of three that the
training never shows (prose and code of the Python distribution, and answers in the chat format),
before, half-way and after. A method that keeps the base has to give it back: the new blocks are
taken out (or the adapters switched off) and the logits compared with the base's, bit for bit.

Results are lines of JSON, one for a run, in OUT/runs.jsonl; runs that stand there are not done
again, so that an interrupted experiment goes on where it was. It takes a GPU where there is one.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import pydoc_data.topics
import random
import statistics
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blockexpand

if TYPE_CHECKING:
    import torch

NEW_TEXT = Path(__file__).parents[1] / "tests/data/king_james.txt"
CODE = ("argparse.py", "json/decoder.py", "statistics.py", "tarfile.py", "textwrap.py", "uuid.py")
CHAT = (
    ("What is the capital of France?", "The capital of France is Paris."),
    (
        "How do plants make their food?",
        "Plants make their food by photosynthesis. With the energy of sunlight they turn carbon "
        "dioxide from the air and water from the soil into sugar and oxygen.",
    ),
    (
        "Give me three tips for staying healthy.",
        "1. Eat a balanced diet with plenty of fruit and vegetables.\n2. Exercise regularly, for "
        "at least half an hour a day.\n3. Get enough sleep: most adults need seven to nine hours.",
    ),
    (
        "Write a short email that asks for a day off.",
        "Subject: Request for a day off\n\nDear Anna,\n\nI would like to take Friday off for a "
        "family matter. I will finish my open tasks before then.\n\nThank you,\nTom",
    ),
    (
        "Explain what a variable is in programming.",
        "A variable is a name for a place in memory where a program stores a value. The value can "
        "be a number, a text or something else, and it can change while the program runs.",
    ),
    (
        "Why is the sky blue?",
        "Sunlight is scattered by the molecules of the air. Blue light is scattered more than red "
        "light because its waves are shorter, so the sky looks blue from every direction.",
    ),
)
HELD_OUT = 0.2  # of the new text and of the general texts, from their ends
IGNORED = -100  # the label that `transformers` leaves out of a loss

Pieces = list[tuple[list[int], list[int]]]  # examples: tokens and labels


@dataclass(frozen=True, slots=True)
class Run:
    """One training. `method` is all, lora-RANK, end-N, interleaved-N or after-I,J,… (a new block
    behind each of these layers); with `+fixed-norms` the new blocks' norms are not trained.
    """

    method: str
    learning_rate: float
    seed: int
    steps: int
    replay_share: float


def main() -> int:
    """Read the command line; do the runs that are missing, or report those that are there."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="a checkpoint's folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--new-text", type=Path, default=NEW_TEXT, help="what is learned")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["all", "lora-32", "end-6", "interleaved-6"],
        metavar="METHOD",
        help="all, lora-RANK, end-N, interleaved-N, after-I,J,… and these with +fixed-norms",
    )
    parser.add_argument(
        "--learning-rates", nargs="+", type=float, default=[5e-5, 2e-4, 1e-3], metavar="RATE"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], metavar="SEED")
    parser.add_argument("--steps", nargs="+", type=int, default=[60], metavar="STEPS")
    parser.add_argument(
        "--replay-shares",
        nargs="+",
        type=float,
        default=[0.0],
        metavar="SHARE",
        help="share of the examples that are general prose and code instead",
    )
    parser.add_argument("--batch-size", type=int, default=4, help="examples a step")
    parser.add_argument("--length", type=int, default=128, help="tokens an example")
    parser.add_argument("--evaluated", type=int, default=16, help="examples a text at most")
    parser.add_argument("--threads", type=int, help="threads of the CPU")
    parser.add_argument("--report", type=Path, metavar="SVG", help="print the table, draw SVG")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.report:
        return report(options.out / "runs.jsonl", options.report)
    import torch
    from transformers.utils import logging

    if options.threads:
        torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    # Rates and methods change fastest: every question has a first answer early.
    wished = [
        Run(method, rate, seed, steps, share)
        for seed, share, steps, rate, method in itertools.product(
            options.seeds,
            options.replay_shares,
            options.steps,
            options.learning_rates,
            options.methods,
        )
    ]
    Experiment(options).do(wished)
    return 0


class Experiment:
    """The texts, cut into examples, and the runs over them."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch
        from transformers import AutoTokenizer

        self.options = options
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        library = Path(sysconfig.get_path("stdlib"))
        topics = pydoc_data.topics.topics
        texts = {
            "new": options.new_text.read_text(encoding="utf-8"),
            "prose": "\n\n".join(topics[name] for name in sorted(topics)),
            "code": "\n\n".join((library / name).read_text(encoding="utf-8") for name in CODE),
        }
        self.texts_sha256 = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
        self.shown: dict[str, Pieces] = {}
        self.held_out: dict[str, Pieces] = {}
        for name, text in texts.items():
            cut = text.rindex("\n\n", 0, round(len(text) * (1 - HELD_OUT)))
            self.shown[name] = self._cut(tokenizer, text[:cut])
            pieces = self._cut(tokenizer, text[cut:])
            every = -(-len(pieces) // options.evaluated)
            self.held_out[name] = pieces[::every]
        self.held_out["chat"] = [as_chat(tokenizer, *turn) for turn in CHAT]
        self.probe = torch.tensor([self.held_out["new"][0][0]], device=self.device)
        self.before: dict[str, float] = {}

    def _cut(self, tokenizer: Any, text: str) -> Pieces:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        length = self.options.length
        starts = range(0, len(ids) - length + 1, length)
        return [(ids[start : start + length],) * 2 for start in starts]

    def do(self, wished: Sequence[Run]) -> None:
        """Do the runs that the results do not have, in their order, a line for each."""
        file = self.options.out / "runs.jsonl"
        results = read_results(file)
        if results:  # a line that a kill cut off would join the next one
            whole = file.with_suffix(".part")
            whole.write_text("".join(json.dumps(result) + "\n" for result in results))
            whole.replace(file)
        done = [result["run"] for result in results]
        for number, run in enumerate(wished, 1):
            if asdict(run) in done:
                continue
            print(f"{number} of {len(wished)}: {run}", flush=True)
            result = self.train(run)
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(result) + "\n")
            losses = ", ".join(
                f"{name} {before:.3f} -> {after:.3f}"
                for (name, before), after in zip(
                    result["losses"][0].items(), result["losses"][-1].values(), strict=True
                )
            )
            print(f"  {losses}; {result['seconds']:.0f} s", flush=True)

    def train(self, run: Run) -> dict[str, Any]:
        """Train one model and return what is known of it afterwards."""
        import torch

        start = time.perf_counter()
        torch.manual_seed(run.seed)
        base = self._load(self.options.model)
        base_logits = self._logits(base)
        base_state = {name: value.clone() for name, value in base.state_dict().items()}
        self.before = self.before or self.evaluate(base)
        model, trained = self._prepare(run, base)
        if not torch.equal(self._logits(model.eval()), base_logits):
            raise SystemExit(f"{run.method}: the model is not the base's function before training")
        optimizer = torch.optim.AdamW(trained, lr=run.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, run))
        losses = [self.before]
        batches = self._batches(run)
        for step in range(1, run.steps + 1):
            model.train()
            self._loss(model, next(batches)).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if step in (run.steps // 2, run.steps):
                losses.append(self.evaluate(model))
        return {
            "run": asdict(run),
            "trained": sum(parameter.numel() for parameter in trained),
            "losses": losses,
            "gives_base_back": self._gives_base_back(run, model, base_logits, base_state),
            "seconds": time.perf_counter() - start,
            "batch_size": self.options.batch_size,
            "length": self.options.length,
            "texts_sha256": self.texts_sha256,
            "torch": torch.__version__,
            "device": self.device,
        }

    def _load(self, folder: Path) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return model.to(self.device).eval()

    def _prepare(self, run: Run, base: Any) -> tuple[Any, list[torch.nn.Parameter]]:
        """Return the model to train, and what of it is trained."""
        method, _, variant = run.method.partition("+")
        kind, _, argument = method.partition("-")
        if kind == "lora":
            from peft import LoraConfig, get_peft_model

            rank = int(argument)
            config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
            base = get_peft_model(base, config)
        elif kind != "all":
            folder = self.options.out / "models" / method
            if not (folder / "block_expansion.json").exists():
                blockexpand.expand(self.options.model, folder, **placement(kind, argument))
            base = self._load(folder)
            names = blockexpand.freeze_original_layers(base, folder)
            if variant == "fixed-norms":
                for name in names:
                    parameter = base.get_parameter(name)
                    parameter.requires_grad_(parameter.dim() > 1)
        return base, [value for value in base.parameters() if value.requires_grad]

    def _batches(self, run: Run) -> Iterator[Pieces]:
        """Yield a step's examples: each epoch of the new text in an order of the seed's own."""
        chance = random.Random(run.seed)
        general = [*self.shown["prose"], *self.shown["code"]]

        def new() -> Iterator[tuple[list[int], list[int]]]:
            while True:
                yield from chance.sample(self.shown["new"], len(self.shown["new"]))

        source = new()
        while True:
            yield [
                chance.choice(general) if chance.random() < run.replay_share else next(source)
                for _ in range(self.options.batch_size)
            ]

    def _loss(self, model: Any, pieces: Pieces) -> torch.Tensor:
        import torch

        ids = torch.tensor([piece[0] for piece in pieces], device=self.device)
        labels = torch.tensor([piece[1] for piece in pieces], device=self.device)
        # Weights stay in float32; matrix products in bfloat16, as most are trained.
        with torch.autocast(self.device, torch.bfloat16):
            return model(input_ids=ids, labels=labels, use_cache=False).loss

    def evaluate(self, model: Any) -> dict[str, float]:
        """Return each held-out text's mean loss over its tokens, in nats, in float32."""
        import torch

        model.eval()
        means = {}
        for name, pieces in self.held_out.items():
            total, count = 0.0, 0
            for ids, labels in pieces:
                with torch.no_grad():
                    loss = model(
                        input_ids=torch.tensor([ids], device=self.device),
                        labels=torch.tensor([labels], device=self.device),
                        use_cache=False,
                    ).loss
                scored = sum(label != IGNORED for label in labels[1:])
                total, count = total + loss.item() * scored, count + scored
            means[name] = total / count
        return means

    def _logits(self, model: Any) -> torch.Tensor:
        import torch

        with torch.no_grad():
            return model(input_ids=self.probe, use_cache=False).logits

    def _gives_base_back(
        self,
        run: Run,
        model: Any,
        logits: torch.Tensor,
        state: Mapping[str, torch.Tensor],
    ) -> bool:
        """Say whether the base is inside: its logits come out, and each of its tensors is there."""
        import torch

        kind = run.method.partition("-")[0]
        if kind == "lora":
            with model.disable_adapter():
                return torch.equal(self._logits(model), logits)
        if kind != "all":
            folder = self.options.out / "models" / run.method.partition("+")[0]
            take_out(model, blockexpand_manifest(folder)["new_layers"])
        left = model.state_dict()
        return all(torch.equal(left[name], value) for name, value in state.items()) and torch.equal(
            self._logits(model), logits
        )


def placement(kind: str, argument: str) -> dict[str, Any]:
    """Return the arguments of `expand` that a method's name stands for."""
    if kind == "after":
        return {"position": [int(layer) for layer in argument.split(",")]}
    return {"position": kind, "new_layers": int(argument)}


def blockexpand_manifest(folder: Path) -> dict[str, Any]:
    """Return the content of an expansion's block_expansion.json."""
    content: dict[str, Any] = json.loads((folder / "block_expansion.json").read_text())
    return content


def take_out(model: Any, new_layers: Sequence[int]) -> None:
    """Remove layers from a Llama-like model, in memory."""
    from torch import nn

    decoder: Any = model.model
    kept = [layer for index, layer in enumerate(decoder.layers) if index not in new_layers]
    for index, layer in enumerate(kept):
        layer.self_attn.layer_idx = index
    decoder.layers = nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)


def as_chat(tokenizer: Any, question: str, answer: str) -> tuple[list[int], list[int]]:
    """Return a turn in the model's chat format, of which only the answer is scored."""
    asked = [{"role": "user", "content": question}]
    start = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    shown = tokenizer(start, add_special_tokens=False)["input_ids"]
    scored = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return [*shown, *scored], [*[IGNORED] * len(shown), *scored]


def rate_at(step: int, run: Run) -> float:
    """Return the share of the learning rate: 6 % warm-up, then a cosine to 0."""
    warmup = max(1, round(0.06 * run.steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (run.steps - warmup)))


def read_results(file: Path) -> list[dict[str, Any]]:
    """Return the finished runs; a line that was cut off by a kill is none."""
    results = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            results.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{file}: a line is not whole and is left out", file=sys.stderr)
    return results


Setting = tuple[str, float, int, float]  # method, learning rate, steps, share of replay


def report(file: Path, drawing: Path) -> int:
    """Print the table in Markdown, means over seeds with their range, and draw it."""
    results = read_results(file)
    if not results:
        print(f"{file}: no finished run; leave out --report to do them", file=sys.stderr)
        return 3
    groups: dict[Setting, list[dict[str, Any]]] = {}
    for result in results:
        run = Run(**result["run"])
        setting = (run.method, run.learning_rate, run.steps, run.replay_share)
        groups.setdefault(setting, []).append(result)
    names = list(results[0]["losses"][0])
    base = results[0]["losses"][0]
    print(f"| trained | parameters | rate | steps | replay | seeds | {' | '.join(names)} | base |")
    print(f"|---|---|---|---|---|---|{'---|' * len(names)}---|")
    print(f"| nothing | | | | | | {' | '.join(f'{base[name]:.3f}' for name in names)} | |")
    for (method, rate, steps, share), members in sorted(groups.items()):
        cells = [
            mean_and_range([member["losses"][-1][name] for member in members]) for name in names
        ]
        back = "yes" if all(member["gives_base_back"] for member in members) else "no"
        print(
            f"| {method} | {members[0]['trained'] / 1e6:.1f} M | {rate:g} | {steps} | {share:g} "
            f"| {len(members)} | {' | '.join(cells)} | {back} |"
        )
    draw(groups, base, drawing)
    return 0


def mean_and_range(values: Sequence[float]) -> str:
    """Return a mean, and how far the values lie apart where there are several."""
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} (±{(max(values) - min(values)) / 2:.3f})" if len(values) > 1 else mean


def draw(
    groups: Mapping[Setting, Sequence[Mapping[str, Any]]],
    base: Mapping[str, float],
    drawing: Path,
) -> None:
    """Draw what is forgotten over what is learned; a line joins before, half-way and after."""
    try:
        from matplotlib import pyplot
    except ImportError:
        print("no drawing: pip install 'blockexpand[experiments]'", file=sys.stderr)
        return
    figure, axes = pyplot.subplots(figsize=(8, 5.5), layout="constrained")
    methods = sorted({setting[0] for setting in groups})
    colors = dict(zip(methods, pyplot.get_cmap("tab10").colors * 2, strict=False))
    for (method, rate, _, share), members in sorted(groups.items()):
        stages = range(len(members[0]["losses"]))
        learned = [gain(members, base, stage, ("new",)) for stage in stages]
        forgotten = [-gain(members, base, stage, ("prose", "code")) for stage in stages]
        style = "--" if share else "-"
        axes.plot(learned, forgotten, style, color=colors[method], alpha=0.6, linewidth=1.2)
        axes.plot(learned[-1], forgotten[-1], "o", color=colors[method], markersize=5)
        axes.annotate(
            f"{rate:g}",
            (learned[-1], forgotten[-1]),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=7,
        )
    for method in methods:
        axes.plot([], [], "o-", color=colors[method], label=method)
    axes.axhline(0, color="gray", linewidth=0.8)
    axes.set_xlabel("learned: fall of the loss on the new text (nats a token)")
    axes.set_ylabel("forgotten: rise of the loss on prose and code")
    axes.legend(fontsize=8)
    figure.savefig(drawing, metadata={"Date": None})
    print(f"\ndrawn: {drawing}", file=sys.stderr)


def gain(
    members: Sequence[Mapping[str, Any]],
    base: Mapping[str, float],
    stage: int,
    names: Sequence[str],
) -> float:
    """Return how far the losses on these texts have fallen below the base's, on average."""
    return statistics.mean(
        base[name] - member["losses"][stage][name] for member in members for name in names
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except blockexpand.BlockExpandError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
