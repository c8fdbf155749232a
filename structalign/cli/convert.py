"""Turn a checkpoint of the authors' released code into a model of this pipeline.

    structalign convert model.pth --task 3

writes `models/clip` and `models/task-03`, and prints the parameters that go with them. To evaluate a checkpoint of
every task, in a clone of its own:

1. `structalign params data=msrvtt K=10`, then `dvc repro split backbone`, for frames, split and what the first
   evaluation starts from;
2. `structalign convert` for each task, after step 1 because that writes `models/clip` too;
3. `structalign params data=msrvtt` with the parameters that `convert` printed;
4. `python -m stages.evaluate --task 1`, then `--task 2` and so on. (`dvc repro` would train in place of it.)
"""

from __future__ import annotations

from pathlib import Path

from structalign import paths
from structalign.model.clip import build_clip, save_clip
from structalign.released import Released, read_released
from structalign.training.loss_curve import LossCurve
from structalign.util.checkpoint import Checkpoint
from structalign.util.command import command_parser, errors_in_one_line, parse
from structalign.util.cost import training_id
from structalign.util.errors import UserError
from structalign.util.files import atomic_write_json, fresh_dir
from structalign.util.log import log


def write(released: Released, task: int) -> None:
    """Write what the stages `backbone` and `train` leave, with an empty loss curve.

    The checkpoint has no class statistics: it can be evaluated, but training cannot go on from it.

    Raises
    ------
    UserError
        If the checkpoint has no prototype of that task.
    """
    if not 1 <= task <= released.num_tasks:
        raise UserError(f"--task {task}: the checkpoint has prototypes for tasks 1 to {released.num_tasks}")
    checkpoint = Checkpoint(task, "structalign", weights=released.adapters, memory=released.projections)
    with fresh_dir(paths.CLIP) as target:
        save_clip(build_clip(released.info.model, released.clip), released.info, target)
    with fresh_dir(paths.checkpoint(task)) as target:
        checkpoint.save(target)
    with LossCurve(paths.loss_curve(task), task) as curve:
        cost = {"steps": 0, "trained_parameters": 0, "training": training_id(curve.text())}
    atomic_write_json(paths.cost(task), cost)


def main() -> None:
    """Parse the command line and convert."""
    parser = command_parser(__doc__)
    parser.add_argument("checkpoint", type=Path, help="a torch file, or its state_dict as .safetensors or .npz")
    parser.add_argument("--task", type=int, required=True, help="the task that the checkpoint was saved after")
    parser.add_argument("--adapter-layers", type=int, default=10, help="10 for MSRVTT, 12 for ACTNET")
    parser.add_argument("--top-k", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--lora-alpha", type=float, default=256.0, help="default: %(default)s")
    parser.add_argument("--text-heads", type=int, help="default: one per 64 channels")
    parser.add_argument("--vision-heads", type=int, help="default: one per 64 channels")
    args = parse(parser)
    with errors_in_one_line(args.debug):
        released = read_released(
            args.checkpoint,
            text_heads=args.text_heads,
            vision_heads=args.vision_heads,
            adapter_layers=args.adapter_layers,
            top_k=args.top_k,
            lora_alpha=args.lora_alpha,
        )
        write(released, args.task)
        model = " ".join(f"model.{key}={value}" for key, value in released.model.model_dump().items())
        log.info(f"its parameters, for `structalign params`: K={released.num_tasks} {model}")
