"""What methods build on: the interface, batches and loss terms; adapters, StructAlign's terms, all of CLIP."""

from structalign.methods.base.adapters import AdapterMethod
from structalign.methods.base.aligned import AlignedMethod
from structalign.methods.base.batch import Batch, joint_text, joint_video
from structalign.methods.base.distillation import DistillationMethod
from structalign.methods.base.full import FullMethod
from structalign.methods.base.method import Method, Teacher, TrainingFeatures
from structalign.methods.base.terms import Term, Terms, total

__all__ = [
    "AdapterMethod",
    "AlignedMethod",
    "Batch",
    "DistillationMethod",
    "FullMethod",
    "Method",
    "Teacher",
    "Term",
    "Terms",
    "TrainingFeatures",
    "joint_text",
    "joint_video",
    "total",
]
