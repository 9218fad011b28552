"""What is kept beside the file that it will end in."""

import pytest
import torch

from dsrl.errors import DsrlError
from dsrl.unfinished import Unfinished

FACTS = {"--lr": 1e-3, "--hidden-dims": (32, 32), "data": "abc"}


def begun(out, step=3):
    Unfinished(out, FACTS).keep("policy", lambda: {"step": step, "weights": torch.arange(3.0)}, now=True)


def test_the_same_command_goes_on(tmp_path):
    out = tmp_path / "policy.pt"
    assert Unfinished(out, FACTS).part("policy") is None
    begun(out)
    said: list[str] = []
    kept = Unfinished(out, FACTS, say=said.append)
    assert said == [f"going on with {out}.unfinished"]
    state = kept.part("policy")
    assert state["step"] == 3 and torch.equal(state["weights"], torch.arange(3.0)) and kept.part("values") is None
    kept.keep("values", lambda: {"step": 1}, now=True)
    assert Unfinished(out, FACTS).part("policy")["step"] == 3, "other parts stay"
    kept.partial.write_text("what an interruption left")
    kept.finish()
    assert list(tmp_path.iterdir()) == [] and Unfinished(out, FACTS).part("policy") is None


def test_it_is_written_now_and_then(tmp_path):
    out = tmp_path / "policy.pt"
    Unfinished(out, FACTS).keep("policy", lambda: pytest.fail("too soon"))
    Unfinished(out, FACTS, interval=0.0).keep("policy", lambda: {"step": 1})
    assert Unfinished(out, FACTS).part("policy") == {"step": 1}


def test_another_command_does_not_go_on(tmp_path):
    out = tmp_path / "policy.pt"
    begun(out)
    others = {**FACTS, "--lr": 1e-2}
    with pytest.raises(DsrlError, match=r"policy.pt.unfinished was begun with other settings: --lr was 0.001, is 0.01"):
        Unfinished(out, others)
    assert Unfinished(out, FACTS).part("policy") is not None
    assert Unfinished(out, FACTS, anew=True).part("policy") is not None, "the same settings lose nothing"
    said: list[str] = []
    assert Unfinished(out, others, anew=True, say=said.append).part("policy") is None and not said


def test_what_cannot_be_read_is_named(tmp_path):
    out = tmp_path / "policy.pt"
    Unfinished(out, FACTS).path.write_bytes(b"half of i")
    with pytest.raises(DsrlError, match=r"policy.pt.unfinished cannot be read .* --overwrite"):
        Unfinished(out, FACTS)
    assert Unfinished(out, FACTS, anew=True).part("policy") is None
