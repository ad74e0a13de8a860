"""The values of a setting that tuning tries. Pure data."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from kdbench.words import shown


class Search(BaseModel):
    """The values of a setting that ``kdbench tune`` tries: a range from ``low`` to ``high``, or ``choices``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    low: int | float | None = None
    """The smallest value."""
    high: int | float | None = None
    """The largest value."""
    log: bool = False
    """Whether values are drawn on a logarithmic scale."""
    choices: tuple[bool | int | float | str, ...] = ()
    """The only values, instead of a range."""

    @model_validator(mode="after")
    def _is_a_range_or_a_list(self) -> Search:
        bounds = (self.low, self.high)
        if self.choices:
            if bounds != (None, None) or self.log:
                raise ValueError("give either choices, or low and high, not both")
            if len(set(map(repr, self.choices))) < len(self.choices):
                raise ValueError(f"each of choices once, got {shown(list(self.choices))}")
            return self
        if self.low is None or self.high is None:
            raise ValueError("needs low and high, or choices")
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got low = {self.low:g} and high = {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be positive where log = true, got {self.low:g}")
        return self

    @classmethod
    def around(cls, default: float, factor: float) -> Search:
        """From ``default / factor`` to ``default * factor``, on a logarithmic scale."""
        # Rounded: 0.003 / 10 is 0.00030000000000000003.
        low, high = (float(f"{value:.12g}") for value in (default / factor, default * factor))
        return cls(low=low, high=high, log=True)

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value of a range."""
        if self.low is None or self.high is None:
            raise TypeError("choices have no bounds")
        return float(self.low), float(self.high)

    @property
    def values(self) -> tuple[Any, ...]:
        """The bounds, or the choices."""
        return self.choices or (self.low, self.high)

    def to_toml(self) -> dict[str, Any]:
        """The table of a suite file."""
        if self.choices:
            return {"choices": list(self.choices)}
        return {"low": self.low, "high": self.high, **({"log": True} if self.log else {})}

    def __str__(self) -> str:
        if self.choices:
            return ", ".join(map(str, self.choices))
        return f"{self.low:.4g} to {self.high:.4g}{', log' if self.log else ''}"
