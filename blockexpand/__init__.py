"""Add blocks to a safetensors language model without changing what it computes.

Block expansion as in LLaMA Pro (arXiv 2401.02415). The command line is `python -m blockexpand`.
Importing this package imports neither torch nor transformers.
"""

# isort: split
from ._search_path import leave_current_folder

leave_current_folder()  # before anything else is looked for

from typing import TYPE_CHECKING

from ._version import __version__
from .errors import (
    ArgumentError,
    BlockExpandError,
    CheckpointError,
    HeaderError,
    HubError,
    InputError,
    NoProofError,
    OutputBusyError,
    OutputError,
    ProcessError,
    ProofError,
    RecipeError,
    SourceChangedError,
    TrainingError,
    TransferError,
    UnknownFamilyError,
    UnsupportedModelError,
    UsageError,
)

if TYPE_CHECKING:
    # What type checkers and editors see; at run time a name is loaded when it is asked for.
    from .adapters.format import BlockAdapter as BlockAdapter
    from .api.application import apply as apply
    from .api.application import apply_on_hub as apply_on_hub
    from .api.attaching import attach as attach
    from .api.attaching import detach as detach
    from .api.batch import JobResult as JobResult
    from .api.batch import expand_batch as expand_batch
    from .api.comparing import diff as diff
    from .api.comparing import verify as verify
    from .api.expansion import expand as expand
    from .api.extraction import Extraction as Extraction
    from .api.extraction import extract as extract
    from .api.merging import merge as merge
    from .api.on_hub import HubResult as HubResult
    from .api.on_hub import expand_on_hub as expand_on_hub
    from .api.pipeline import Expansion as Expansion
    from .api.pipeline import Verified as Verified
    from .api.ranking import Ranking as Ranking
    from .api.ranking import rank as rank
    from .api.training import train as train
    from .api.training_plan import Trained as Trained
    from .api.training_plan import TrainingPlan as TrainingPlan
    from .api.training_plan import plan_training as plan_training
    from .checkpoints.checkpoint import Checkpoint as Checkpoint
    from .checkpoints.checkpoint import open_checkpoint as open_checkpoint
    from .checkpoints.sources import ModelRef as ModelRef
    from .planning.manifest import Manifest as Manifest
    from .planning.parameters import Parameters as Parameters
    from .planning.parameters import count_parameters as count_parameters
    from .planning.plan import Plan as Plan
    from .planning.plan import make_plan as make_plan
    from .planning.recipe import Recipe as Recipe
    from .progress import Progress as Progress
    from .training.freezing import freeze_original_layers as freeze_original_layers
    from .training.freezing import open_manifest as open_manifest
    from .training.settings import make_settings as make_settings
    from .training.trainer_settings import TrainerSettings as TrainerSettings
    from .verification.difference import Difference as Difference
    from .verification.difference import TensorDifference as TensorDifference
    from .verification.difference import TensorStatistics as TensorStatistics
    from .verification.findings import Finding as Finding
    from .verification.findings import Verification as Verification
    from .verification.logits import LogitsProof as LogitsProof
    from .writing.shard import Moved as Moved

_PLACES = {
    "BlockAdapter": "adapters.format",
    "Checkpoint": "checkpoints.checkpoint",
    "Difference": "verification.difference",
    "Expansion": "api.pipeline",
    "Extraction": "api.extraction",
    "Finding": "verification.findings",
    "HubResult": "api.on_hub",
    "JobResult": "api.batch",
    "LogitsProof": "verification.logits",
    "Manifest": "planning.manifest",
    "Moved": "writing.shard",
    "Parameters": "planning.parameters",
    "Plan": "planning.plan",
    "Progress": "progress",
    "Ranking": "api.ranking",
    "Recipe": "planning.recipe",
    "ModelRef": "checkpoints.sources",
    "TensorDifference": "verification.difference",
    "TensorStatistics": "verification.difference",
    "Trained": "api.training_plan",
    "TrainerSettings": "training.trainer_settings",
    "TrainingPlan": "api.training_plan",
    "Verification": "verification.findings",
    "Verified": "api.pipeline",
    "apply": "api.application",
    "apply_on_hub": "api.application",
    "attach": "api.attaching",
    "count_parameters": "planning.parameters",
    "detach": "api.attaching",
    "diff": "api.comparing",
    "expand": "api.expansion",
    "expand_batch": "api.batch",
    "expand_on_hub": "api.on_hub",
    "extract": "api.extraction",
    "freeze_original_layers": "training.freezing",
    "make_plan": "planning.plan",
    "make_settings": "training.settings",
    "merge": "api.merging",
    "open_checkpoint": "checkpoints.checkpoint",
    "open_manifest": "training.freezing",
    "plan_training": "api.training_plan",
    "rank": "api.ranking",
    "train": "api.training",
    "verify": "api.comparing",
}

__all__ = [
    "ArgumentError",
    "BlockAdapter",
    "BlockExpandError",
    "Checkpoint",
    "CheckpointError",
    "Difference",
    "Expansion",
    "Extraction",
    "Finding",
    "HeaderError",
    "HubError",
    "HubResult",
    "InputError",
    "JobResult",
    "LogitsProof",
    "Manifest",
    "ModelRef",
    "Moved",
    "NoProofError",
    "OutputBusyError",
    "OutputError",
    "Parameters",
    "Plan",
    "ProcessError",
    "Progress",
    "ProofError",
    "Ranking",
    "Recipe",
    "RecipeError",
    "SourceChangedError",
    "TensorDifference",
    "TensorStatistics",
    "Trained",
    "TrainerSettings",
    "TrainingError",
    "TrainingPlan",
    "TransferError",
    "UnknownFamilyError",
    "UnsupportedModelError",
    "UsageError",
    "Verification",
    "Verified",
    "__version__",
    "apply",
    "apply_on_hub",
    "attach",
    "count_parameters",
    "detach",
    "diff",
    "expand",
    "expand_batch",
    "expand_on_hub",
    "extract",
    "freeze_original_layers",
    "make_plan",
    "make_settings",
    "merge",
    "open_checkpoint",
    "open_manifest",
    "plan_training",
    "rank",
    "train",
    "verify",
]


if not TYPE_CHECKING:
    # Hidden from type checkers, to which a module with __getattr__ has every name.

    def __getattr__(name):
        # Loaded when asked for, so that `--help` and `--version` start as fast as Python does.
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f".{_PLACES[name]}", __name__), name)

    def __dir__():
        return __all__
