"""Numbers of a job that may change over its training: one number, or from where to where."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from service.contract.catalogue import Frozen

Share = Annotated[float, Field(ge=0, le=1)]
Temperature = Annotated[float, Field(gt=0, le=1000)]


class Ramp(Frozen):
    """A number that goes from one value to another over all steps of a training."""

    model_config = ConfigDict(serialize_by_alias=True)

    start: float = Field(alias="from", description="At the first step.", examples=[0.9])
    stop: float = Field(alias="to", description="Where the last step is heading.", examples=[0.1])
    shape: Literal["linear", "cosine"] = Field("linear", description="cosine: half a cosine, slow at both ends.")

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest value."""
        return min(self.start, self.stop), max(self.start, self.stop)


class ShareRamp(Ramp):
    """A weight between 0 and 1 that changes over a training."""

    start: Share = Field(alias="from", description="At the first step.", examples=[0.9])
    stop: Share = Field(alias="to", description="Where the last step is heading.", examples=[0.1])


class TemperatureRamp(Ramp):
    """A temperature that changes over a training."""

    start: Temperature = Field(alias="from", description="At the first step.", examples=[8.0])
    stop: Temperature = Field(alias="to", description="Where the last step is heading.", examples=[2.0])


def _kind_of_number(value: Any) -> str:
    return "ramp" if isinstance(value, Mapping | Ramp) else "constant"


_BY_KIND = Discriminator(_kind_of_number)
ChangingShare = Annotated[Annotated[Share, Tag("constant")] | Annotated[ShareRamp, Tag("ramp")], _BY_KIND]
ChangingTemperature = Annotated[
    Annotated[Temperature, Tag("constant")] | Annotated[TemperatureRamp, Tag("ramp")], _BY_KIND
]


def bounds(value: float | Ramp) -> tuple[float, float]:
    """The lowest and the highest value over a training."""
    return value.bounds if isinstance(value, Ramp) else (value, value)
