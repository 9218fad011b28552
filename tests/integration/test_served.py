"""A base policy in another process goes through the whole run: trained, recorded, found again, scored."""

import ast
import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_cli import LEARN, refused
from test_finetune import QUIET, short

from dsrl.commands import load_run
from dsrl.errors import DsrlError
from dsrl.finetune import finetune
from dsrl.pretrained import load_policy

pytest.importorskip("msgpack")
pytest.importorskip("websockets")

from websockets.exceptions import ConnectionClosedOK

from dsrl.pretrained.link import Link
from dsrl.pretrained.serve import PolicyServer

pytestmark = [pytest.mark.integration]

PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"


@contextmanager
def served(checkpoint):
    with PolicyServer(load_policy(checkpoint, device="cpu"), port=0) as server:
        yield server


@pytest.fixture(scope="module")
def server(toy_checkpoint):
    with served(toy_checkpoint) as server:
        yield server


@pytest.fixture(scope="module")
def run(dsrl, server, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "served"
    flags = ["--algo", "na", "--total-env-steps", 400, "--run-dir", run_dir]
    done = dsrl("finetune", "--base-policy", server.address, *flags, *LEARN)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"base policy {server.address} on" in done.stdout
    return run_dir


def test_the_run_records_address_and_hash_and_is_found_again(run, server, toy_checkpoint):
    facts, local = json.loads((run / "base_policy.json").read_text()), load_policy(toy_checkpoint, device="cpu")
    assert facts["path"] == server.address and facts["sha256"] == local.spec.sha256
    steered, env = load_run(run, "final", "cpu")
    assert steered.base.address == server.address and env.id == "dsrl/PointReach-v0"
    obs = torch.zeros(3, 1, 4)
    assert torch.equal(steered.encode(obs), local.encode(obs))


def test_the_same_seed_gives_the_same_run_as_with_the_local_policy(server, toy_checkpoint, tmp_path):
    results = [finetune(short(path, tmp_path / name), QUIET) for name, path in
               (("local", toy_checkpoint), ("served", server.address))]  # fmt: skip
    local, remote = ([p.numpy() for p in load_run(r.run_dir, "final", "cpu")[0].actor.parameters()] for r in results)
    assert all((a == b).all() for a, b in zip(local, remote, strict=True))


def test_it_is_scored_while_it_is_served(run, dsrl, server):
    done = dsrl("evaluate", run, "--episodes", 4, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    done = dsrl("inspect", server.address)
    assert done.returncode == 0 and server.address in done.stdout and "in another process" in done.stdout


def test_a_run_of_another_policy_is_refused(run, toy_checkpoint):
    other = load_policy(toy_checkpoint, device="cpu")
    other.spec = replace(other.spec, sha256="0" * 64)
    facts = json.loads((run / "base_policy.json").read_text())
    with PolicyServer(other, port=0) as elsewhere:
        (run / "base_policy.json").write_text(json.dumps({**facts, "path": elsewhere.address}))
        with pytest.raises(DsrlError, match=r"is no longer the base policy of this run: it hashes to 000000000000"):
            load_run(run, "final", "cpu")
    (run / "base_policy.json").write_text(json.dumps(facts))


def test_what_needs_the_weights_says_where_they_are(run, dsrl, server, tmp_path):
    refused(dsrl("export", run, tmp_path / "out.pt"), server.address, "weights of this policy are in another process")
    refused(dsrl("convert", server.address, tmp_path / "out"), server.address, "do that where its checkpoint lies")
    refused(dsrl("inspect", "ws://localhost:1"), "ws://localhost:1: no policy server listens there")


def test_a_server_that_dies_in_the_middle_costs_nothing_that_was_learned(toy_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(Link.__init__.__kwdefaults__, "reconnect", 1.0)
    with served(toy_checkpoint) as server:
        answers = iter(range(10_000))
        answer = server._answer

        def short_lived(message):
            if next(answers) == 80:
                server._server.socket.close()  # nobody can come back
                raise ConnectionClosedOK(None, None)
            return answer(message)

        server._answer = short_lived
        with pytest.raises(DsrlError, match=r"training stopped: .*went away in the middle"):
            finetune(short(server.address, tmp_path / "run"), QUIET)
    assert (tmp_path / "run" / "final.zip").exists()


def test_the_server_on_the_page_for_old_environments_works(tmp_path):
    """Run as it stands there: no dsrl, no torch."""
    source = PAGE.read_text().split("```py\n")[1].split("```")[0]
    assert "dsrl" not in source and "torch" not in source
    ast.parse(source, feature_version=(3, 9))
    tell = "    print(server.socket.getsockname()[1], flush=True)\n    server.serve_forever()"
    source = source.replace('"localhost", 8765', '"localhost", 0').replace("    server.serve_forever()", tell)
    (tmp_path / "server.py").write_text(source)
    with subprocess.Popen([sys.executable, tmp_path / "server.py"], stdout=subprocess.PIPE, text=True) as process:
        try:
            policy = load_policy(f"ws://localhost:{process.stdout.readline().strip()}", device="cpu")
            obs, noise = torch.randn(5, 1, 4), torch.randn(5, 4, 2)
            chunk = policy.sample(obs, noise)
            assert policy.cond_dim == 4 and torch.equal(policy.decode(policy.encode(obs), noise), chunk)
            assert chunk.shape == (5, 4, 2) and not torch.equal(policy.sample(obs, noise + 1), chunk)
        finally:
            process.kill()
