"""An interruption is recognised wherever it strikes."""

import io

import pytest
import torch

from dsrl.interruption import was_interrupted


class Interrupted(io.BytesIO):
    """A file during whose writing the user presses Ctrl-C."""

    def write(self, data) -> int:
        raise KeyboardInterrupt


def test_ctrl_c_in_the_middle_of_a_save_is_an_interruption():
    with pytest.raises(BaseException) as caught:
        torch.save({"weight": torch.zeros(10_000)}, Interrupted())
    assert was_interrupted(caught.value)


def test_an_error_of_its_own_is_none():
    try:
        try:
            raise ValueError("first")
        except ValueError:
            raise RuntimeError("second")  # noqa: B904
    except RuntimeError as error:
        assert not was_interrupted(error)
