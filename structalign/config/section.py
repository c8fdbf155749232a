"""What sections of `params.yaml` are made of: their base, and the ranges that many parameters share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Auto = Literal["auto"]


class Section(BaseModel):
    """A group of parameters. It cannot be changed, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, use_attribute_docstrings=True)


class Source(Section):
    """One file to obtain: from a URL, or from a path on this machine (then nothing is fetched)."""

    source: str | Annotated[list[str], Field(min_length=1)]
    """`https://...` or a local path, or a list of mirrors that are tried in turn."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Checksum the file must have; null if the publisher gives none."""


class DataSection(Section):
    """What every data set's section has; the section itself stands beside the data set, as `DataConfig`."""

    name: str
    """A file in `structalign/data/datasets/`."""
    protocol: Literal["published", "fewshot"]
    """Where the split comes from: a published file, or a seeded draw of few shots."""

    @property
    def published_tasks(self) -> list[int]:
        """Numbers of tasks K that a split was published for."""
        return []
