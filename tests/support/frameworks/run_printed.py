"""Run a script that `train-config` prints, for three steps on a CPU: SCRIPT ROWS MODEL.

Only what it leaves open is put in: the rows, and how many steps on what. The trained model is in
the folder `trained` of the current one.
"""

import json
import shutil
import sys
from pathlib import Path

SHORT = 'max_steps=3, per_device_train_batch_size=2, use_cpu=True, report_to="none",'


def put_in(script: str, place: str, more: str) -> str:
    assert script.count(place) == 1, place
    return script.replace(place, more)


def tokenize(model_folder: str, conversations: list) -> list:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    texts = [tokenizer.apply_chat_template(one, tokenize=False) for one in conversations]
    found = [tokenizer(text)["input_ids"][:12] for text in texts]
    return [{"input_ids": ids, "labels": ids} for ids in found]


printed, rows, folder = Path(sys.argv[1]).read_text(), Path(sys.argv[2]), sys.argv[3]
conversations = [json.loads(line)["messages"] for line in rows.read_text().splitlines()]
names: dict = {}
if "SFTTrainer" in printed:
    from datasets import Dataset

    names["rows"] = Dataset.from_list([{"messages": one} for one in conversations])
else:
    names["rows"] = tokenize(folder, conversations)
if "get_peft_model" in printed:
    from transformers import Trainer, TrainingArguments

    exec(printed, names)
    values = {"max_steps": 3, "per_device_train_batch_size": 2, "use_cpu": True}
    arguments = TrainingArguments("run", bf16=True, report_to="none", learning_rate=2e-4, **values)
    trainer = Trainer(model=names["model"], args=arguments, train_dataset=names["rows"])
    trainer.train()
    names["model"].merge_and_unload().save_pretrained("trained")
    shutil.copy(Path(folder) / "block_expansion.json", "trained")
else:
    script = put_in(printed, "train_dataset=...", "train_dataset=rows")
    place = 'output_dir="trained",'
    exec(put_in(script, place, f"{place} {SHORT}"), names)
