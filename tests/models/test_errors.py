from __future__ import annotations

import pytest

from prunelab.models.errors import ModelError, require_image_size, require_positive


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_what_is_not_positive_and_finite_is_named(value: float) -> None:
    with pytest.raises(ModelError, match=f"^width is {value}, ") as error:
        require_positive(depth=3, width=value)
    assert "\n" not in str(error.value)


def test_positive_values_pass() -> None:
    require_positive(depth=1, width=0.25)


def test_the_smallest_image_size_is_enough() -> None:
    require_image_size("vgg11", 16, smallest=16)
    with pytest.raises(ModelError, match="vgg11 needs images of at least 16 pixels, got image_size 15"):
        require_image_size("vgg11", 15, smallest=16)


def test_it_is_a_value_error() -> None:
    assert issubclass(ModelError, ValueError)
