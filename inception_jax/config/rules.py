"""What the value of a single field must be, beyond its type."""

from collections.abc import Callable
from typing import Any, NamedTuple

from inception_jax.registry import is_outside


class Rule(NamedTuple):
    """A condition on a field's value.

    Attributes:
      text: completes the sentence "it must be ...".
      holds: whether a value of the field's type is allowed; a field that is unset is not asked.
    """

    text: str
    holds: Callable[[Any], bool]


def _numbers(value: tuple) -> bool:
    return all(isinstance(item, int | float) and not isinstance(item, bool) for item in value)


def _distinct_names(value: tuple) -> bool:
    return all(isinstance(item, str) for item in value) and len(set(value)) == len(value)


def _ascending(value: tuple) -> bool:
    return len(value) == 2 and _numbers(value) and 0 < value[0] <= value[1]


BALANCED = ("balanced",)  # loss.class_weights by the number of training images

AT_LEAST_1 = Rule("at least 1", lambda x: x >= 1)
AT_LEAST_0 = Rule("0 or more", lambda x: x >= 0)
POSITIVE = Rule("more than 0", lambda x: x > 0)
BETWEEN_0_AND_1 = Rule("more than 0 and less than 1", lambda x: 0 < x < 1)
SHARE = Rule("more than 0 and at most 1", lambda x: 0 < x <= 1)
PROBABILITY = Rule("from 0 to 1", lambda x: 0 <= x <= 1)
BELOW_1 = Rule("0 or more and less than 1", lambda x: 0 <= x < 1)
# 1 less the seventh digit: float32 has nothing between that and 1, and with 1 an average never moves.
DECAY = Rule("from 0 to 0.9999999", lambda x: 0 <= x <= 0.9999999)
HALF_TURN = Rule("from 0 to 0.5", lambda x: 0 <= x <= 0.5)
DEGREES = Rule("from 0 to 360", lambda x: 0 <= x <= 360)
OPERATIONS = Rule("from 0 to 14", lambda x: 0 <= x <= 14)  # RandAugment has 14
MAGNITUDE = Rule("from 0 to 30", lambda x: 0 <= x <= 30)
WORKERS = Rule("from 0 to 1024", lambda x: 0 <= x <= 1024)
SEED = Rule("from 0 to 4294967295", lambda x: 0 <= x < 2**32)  # the whole of uint32
CHANNELS = Rule("1 or 3", lambda x: x in (1, 3))
PIXELS = Rule("from 1 to 4096 pixels", lambda x: 1 <= x <= 4096)
PAD = Rule("from 0 to 1024 pixels", lambda x: 0 <= x <= 1024)
AREA = Rule("two shares of the area, the smaller first", lambda x: not x or (_ascending(x) and x[1] <= 1))
RATIOS = Rule("two numbers above 0, the smaller first", _ascending)
EPOCHS = Rule("numbers above 0, such as (60, 120)", lambda x: _numbers(x) and all(item > 0 for item in x))
CLASS_WEIGHTS = Rule(
    "balanced, or a number above 0 for each class",
    lambda x: x == BALANCED or (_numbers(x) and all(item > 0 for item in x)),
)
CHANNEL_MEANS = Rule(
    "a number from 0 to 1 for each channel", lambda x: _numbers(x) and all(0 <= item <= 1 for item in x)
)
CHANNEL_DEVIATIONS = Rule("a number above 0 for each channel", lambda x: _numbers(x) and all(item > 0 for item in x))
NAMES = Rule("different names", _distinct_names)
OUTSIDE = Rule("names such as module:Name", lambda x: all(isinstance(item, str) and is_outside(item) for item in x))
SPLIT = Rule("a part of the data, such as train[:90%]", bool)
