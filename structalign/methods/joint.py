"""Joint training, the upper bound: all tasks' data at once, with nothing to forget.

`split.joint` hands the training data of all tasks to the first one; what trains, and on which loss, is as for
plain fine-tuning.
"""

from __future__ import annotations

from structalign.methods.finetune import Finetune


class Joint(Finetune):
    """All of CLIP trains on all tasks in task 1; later tasks only grow the gallery."""
