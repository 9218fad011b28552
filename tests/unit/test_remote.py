"""A policy in another process: what comes over the wire is what the policy says, or a clear error."""

import http.server
import re
import socket
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsrl.errors import DsrlError
from dsrl.policy import FrozenPolicy, PolicySpec
from dsrl.pretrained import convert, describe, load_policy, save_policy, spelled
from dsrl.pretrained.toy import ToyPolicy
from dsrl.steered import SteeredPolicy

pytest.importorskip("msgpack")
pytest.importorskip("websockets")

import msgpack
from contract import FrozenPolicyContract
from specimens import inputs, own_policy
from test_policy_contract import make_steered
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import serve

from dsrl.pretrained.remote import RemotePolicy
from dsrl.pretrained.serve import PolicyServer
from dsrl.pretrained.wire import array_in, array_out, hello_out, pack, unpack

FAST = {"open_timeout": 2.0, "answer_timeout": 2.0, "reconnect": 1.0}


class SampleOnly:
    """What the server of another code base may have: one function and its shapes."""

    def __init__(self):
        self.inner = own_policy("flow-mlp")
        self.spec = replace(self.inner.spec, sha256="sample-only")

    def sample(self, obs, noise):
        return self.inner.sample(obs, noise)


class Moody(ToyPolicy):
    """Fails, or answers with something else, when it is told to."""

    def __init__(self, mood):
        super().__init__()
        self.mood = mood

    def decode(self, cond, noise):
        return self.mood(super().decode(cond, noise))


def policies():
    flow = own_policy("flow-unet")
    flow.spec = replace(flow.spec, sha256="f" * 64)
    return {"toy": ToyPolicy(), "flow": flow, "sample only": SampleOnly()}


@pytest.fixture(scope="module", params=["toy", "flow", "sample only"])
def pair(request):
    """A policy, and the same one over the wire."""
    local = policies()[request.param]
    with PolicyServer(local, port=0, max_batch=6) as server:  # the contract's batches of 8 go out in two pieces
        yield local, load_policy(server.address, device="cpu")


@pytest.fixture
def policy(pair):
    return pair[1]


@pytest.fixture
def toy():
    with PolicyServer(ToyPolicy(), port=0) as server:
        yield server


@contextmanager
def foreign(hello, answer=None):
    """A websocket server of somebody else: says ``hello``, then what ``answer(request)`` gives; None ends it."""

    def talk(connection):
        connection.send(hello)
        for message in connection:
            said = answer(message)
            if said is None:
                return
            connection.send(said)

    with serve(talk, "localhost", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"ws://localhost:{server.socket.getsockname()[1]}"


def toy_hello(**changes):
    with PolicyServer(ToyPolicy(), port=0) as server:
        return {**hello_out(server.hello), **changes}


def free_port():
    with socket.create_server(("localhost", 0)) as listener:
        return listener.getsockname()[1]


class TestOverTheWire(FrozenPolicyContract):
    """The same contract."""

    test_a_gpu_plays_the_same = None  # a connection is not copied


def test_the_chunk_is_the_local_one_to_the_bit(pair):
    local, remote = pair
    obs, noise = inputs(local.spec, batch=5)
    assert torch.equal(remote.sample(obs, noise), local.sample(obs, noise))
    assert torch.equal(remote.decode(remote.encode(obs), noise), local.sample(obs, noise))


def test_the_encoding_is_the_policys_own_or_the_flat_observation(pair):
    local, remote = pair
    obs, _ = inputs(local.spec, batch=3)
    expected = obs.flatten(1) if isinstance(local, SampleOnly) else local.encode(obs)
    assert torch.equal(remote.encode(obs), expected) and remote.cond_dim == expected.shape[1]


def test_what_is_known_about_the_policy_comes_along(toy):
    remote, local = load_policy(toy.address, device="cpu"), ToyPolicy()
    assert replace(remote.spec, provenance={}) == local.spec and remote.spec.env.id == "dsrl/PointReach-v0"
    rows = dict(describe(toy.address))
    assert rows["sha256"] == local.spec.sha256 and rows["address"] == toy.address
    assert rows["kind"].startswith("toy") and rows["horizon"] == "4 x 2, noise [4, 2]"


def test_an_address_survives_being_a_path(toy):
    path = Path(toy.address)
    assert load_policy(path, device="cpu").address == spelled(path) == toy.address


def test_a_remote_policy_is_steered_as_any_other():
    local = own_policy("flow-mlp")
    local.spec = replace(local.spec, sha256="f" * 64)
    obs, _ = inputs(local.spec)
    with PolicyServer(local, port=0) as server:
        steered = make_steered(load_policy(server.address, device="cpu"))
        assert isinstance(steered, SteeredPolicy) and isinstance(steered.base, FrozenPolicy)
        eps = torch.randn(8, *steered.spec.noise_shape, generator=torch.Generator().manual_seed(2))
        torch.testing.assert_close(steered.sample(obs, eps), make_steered(local).sample(obs, eps))
        with pytest.raises(DsrlError, match=r"weights of this policy are in another process .*dsrl evaluate RUN"):
            save_policy(steered, "nowhere.pt")


def test_two_clients_at_once_get_their_own_answers(toy):
    wrong = []

    def ask(seed):
        remote, generator = load_policy(toy.address, device="cpu"), torch.Generator().manual_seed(seed)
        for _ in range(30):
            obs, noise = torch.randn(3, 1, 4, generator=generator), torch.randn(3, 4, 2, generator=generator)
            if not torch.equal(remote.sample(obs, noise), ToyPolicy().sample(obs, noise)):
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not wrong and not any(thread.is_alive() for thread in threads)


# -- who is asked, and how --------------------------------------------------------------------------------------------


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "msgpack", None)
    with pytest.raises(DsrlError, match=r"pip install 'dsrl-steering\[remote\]'"):
        load_policy("ws://localhost:8765", device="cpu")


def test_nobody_listens():
    address = f"ws://localhost:{free_port()}"
    with pytest.raises(DsrlError, match=rf"^{address}: no policy server listens there .*start it first"):
        load_policy(address, device="cpu")


@pytest.mark.parametrize("address", ["ws://", "ws:///", "ws://localhost:port", "ws://[1:2"])
def test_an_address_that_is_none(address):
    with pytest.raises(DsrlError, match=r"is no address of a policy server; write ws://host:port"):
        load_policy(address, device="cpu")


def test_something_else_listens():
    with http.server.HTTPServer(("localhost", 0), http.server.SimpleHTTPRequestHandler) as web:
        web.RequestHandlerClass.log_message = lambda *_: None
        threading.Thread(target=web.serve_forever, daemon=True).start()
        with pytest.raises(DsrlError, match="what listens there is no policy server"):
            RemotePolicy(f"ws://localhost:{web.server_port}", **FAST)
        web.shutdown()


def test_something_that_says_nothing_listens():
    with (
        socket.create_server(("localhost", 0)) as silent,
        pytest.raises(DsrlError, match=r"no policy server answered within 0.3 s; check host and port"),
    ):
        RemotePolicy(f"ws://localhost:{silent.getsockname()[1]}", open_timeout=0.3)


def test_how_the_policy_is_read_is_not_decided_here(toy):
    with pytest.raises(DsrlError, match=r"decided where it is served; leave out --load\.\* here"):
        load_policy(toy.address, sampling_steps=8, device="cpu")
    with pytest.raises(DsrlError, match="do that where its checkpoint lies"):
        convert(Path(toy.address), "nowhere")


def test_a_port_that_is_taken(toy):
    port = int(toy.address.rpartition(":")[2])
    with pytest.raises(DsrlError, match=rf"cannot serve on localhost:{port}: .*choose another --port"):
        PolicyServer(ToyPolicy(), port=port)


def test_a_policy_that_cannot_be_known_again_is_not_served():
    policy = ToyPolicy()
    policy.spec = replace(policy.spec, sha256="")
    with pytest.raises(DsrlError, match=r"no spec\.sha256"):
        PolicyServer(policy, port=0)


def test_a_page_in_a_browser_is_turned_away(toy):
    with pytest.raises(InvalidStatus), connect(toy.address, origin="https://example.org"):
        pass


@pytest.mark.parametrize(
    ("hello", "complaint"),
    [
        ({"protocol": 2}, "speaks version 2 of the protocol, this dsrl 1; update dsrl here"),
        ({"protocol": 0}, "speaks version 0 of the protocol, this dsrl 1; update dsrl there"),
        ({"protocol": "1"}, "speaks version '1'"),
        ({"sha256": ""}, "must name 'kind' and 'sha256'"),
        ({"ops": ["encode"]}, "either 'sample' or both 'encode' and 'decode' are needed"),
        ({"ops": "sample"}, "expected a list such as"),
        ({"cond_dim": None}, "has cond_dim = None"),
        ({"max_batch": 0}, "has max_batch = 0"),
        ({"spec": None}, "its spec is not that of a policy"),
        ({"spec": {"horizon": 4}}, "its spec is not that of a policy"),
        ({"env": 7}, "its spec is not that of a policy"),
    ],
)
def test_a_hello_that_does_not_do(hello, complaint):
    with (
        foreign(pack(toy_hello(**hello))) as address,
        pytest.raises(DsrlError, match=rf"^{address}: .*{re.escape(complaint)}"),
    ):
        RemotePolicy(address, **FAST)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"action_dim": "2"}, "'action_dim' is '2', expected a whole number"),
        ({"noise_shape": [4, -2]}, "'noise_shape' is -2, expected a whole number"),
        ({"obs_shapes": {"obs": [10**9]}}, r"obs_shapes = \[1000000000\], which is too large"),
    ],
)
def test_a_hello_with_impossible_sizes(change, complaint):
    spec = {**toy_hello()["spec"], **change}
    with (
        foreign(pack(toy_hello(spec=spec))) as address,
        pytest.raises(DsrlError, match=complaint),
    ):
        RemotePolicy(address, **FAST)


@pytest.mark.parametrize("hello", ["hello", b"\xc1", b"", msgpack.packb([1, 2]), b"\xdf\xff\xff\xff\xff"])
def test_a_first_message_that_is_none(hello):
    with foreign(hello) as address, pytest.raises(DsrlError, match="what listens there is no policy server to use"):
        RemotePolicy(address, **FAST)


# -- answers ----------------------------------------------------------------------------------------------------------

GOOD = array_out(torch.zeros(2, 4, 2))


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ({"array": {**GOOD, "shape": [2, 4, 3]}}, "has the shape (2, 4, 3), expected (2, 4, 2)"),
        ({"array": {**GOOD, "shape": [16]}}, "has the shape (16), expected (2, 4, 2)"),
        ({"array": {**GOOD, "shape": [2, 4, 2.0]}}, "expected a list of sizes"),
        ({"array": {**GOOD, "dtype": "<f8"}}, "has the dtype '<f8', expected '<f4'"),
        ({"array": {**GOOD, "dtype": "|O"}}, "has the dtype '|O', expected '<f4'"),
        ({"array": {**GOOD, "data": GOOD["data"][:-1]}}, "holds 63 bytes, expected 64 bytes"),
        ({"array": {**GOOD, "data": "0" * 64}}, "holds a str, expected 64 bytes"),
        ({"array": array_out(torch.full((2, 4, 2), torch.nan))}, "is nan at [0, 0, 0]; it must be finite"),
        ({"array": array_out(torch.tensor([0.0, torch.inf]).expand(2, 4, 2))}, "is inf at [0, 0, 1]"),
        ({"array": [0.0] * 16}, "is no array"),
        ({}, "is no array"),
        ({"error": "the robot is asleep"}, "could not sample: the robot is asleep"),
    ],
)
def test_a_wrong_answer_is_refused(answer, complaint):
    with foreign(pack(toy_hello()), lambda _: pack(answer)) as address:
        remote = RemotePolicy(address, **FAST)
        with pytest.raises(DsrlError, match=rf"^{address}: .*{re.escape(complaint)}"):
            remote.sample(torch.zeros(2, 1, 4), torch.zeros(2, 4, 2))


@pytest.mark.parametrize("answer", ["a text", b"\xc1", msgpack.packb(3)])
def test_an_answer_that_is_no_message(answer):
    with foreign(pack(toy_hello()), lambda _: answer) as address:
        remote = RemotePolicy(address, **FAST)
        with pytest.raises(DsrlError, match=r"the policy server sent .* is it one of dsrl's"):
            remote.sample(torch.zeros(2, 1, 4), torch.zeros(2, 4, 2))


def test_a_policy_that_answers_otherwise_the_second_time_is_refused():
    with (
        PolicyServer(Moody(lambda chunk: chunk + torch.rand(())), port=0) as server,
        pytest.raises(DsrlError, match="the same noise gave two different chunks"),
    ):
        load_policy(server.address, device="cpu")


def test_what_the_policy_raises_reaches_its_client_and_the_server_lives_on():
    moods = [RuntimeError("CUDA out of memory")]

    def mood(chunk):
        if moods:
            raise moods.pop()
        return chunk

    with PolicyServer(Moody(mood), port=0) as server:
        remote = RemotePolicy(server.address, **FAST)
        obs, noise = inputs(remote.spec, batch=2)
        with pytest.raises(DsrlError, match="could not sample: RuntimeError: CUDA out of memory"):
            remote.sample(obs, noise)
        assert torch.equal(remote.sample(obs, noise), ToyPolicy().sample(obs, noise))


def test_a_server_that_hangs_is_given_up():
    done = threading.Event()
    with foreign(pack(toy_hello()), lambda _: done.wait(20) and b"") as address:
        remote = RemotePolicy(address, **{**FAST, "answer_timeout": 0.3})
        with pytest.raises(DsrlError, match=r"did not answer within 0.3 s"):
            remote.encode(torch.zeros(1, 1, 4))
        done.set()


# -- servers that go away ---------------------------------------------------------------------------------------------


def test_a_server_that_was_restarted_is_found_again():
    port, local = free_port(), ToyPolicy()
    obs, noise = inputs(local.spec, batch=2)
    with PolicyServer(local, port=port):
        remote = RemotePolicy(f"ws://localhost:{port}", **FAST)
    again = PolicyServer(local, port=port)
    later = threading.Timer(0.3, again.start)  # the first attempts come too early
    later.start()
    assert torch.equal(remote.sample(obs, noise), local.sample(obs, noise))
    later.join()
    again.close()


def test_a_server_that_came_back_with_another_policy_is_refused():
    port, local = free_port(), ToyPolicy()
    with PolicyServer(local, port=port):
        remote = RemotePolicy(f"ws://localhost:{port}", **FAST)
    local.spec = replace(local.spec, sha256="0" * 64)
    with (
        PolicyServer(local, port=port),
        pytest.raises(DsrlError, match=r"serves another policy: toy 000000000000 .*before it was toy"),
    ):
        remote.encode(torch.zeros(1, 1, 4))


def test_a_server_that_stays_away():
    with PolicyServer(ToyPolicy(), port=0) as server:
        remote = RemotePolicy(server.address, **FAST)
    with pytest.raises(DsrlError, match=r"went away in the middle .* did not come back within 1 s; start it again"):
        remote.encode(torch.zeros(1, 1, 4))


def test_a_request_that_kills_the_server_is_not_sent_for_ever():
    asked = []

    with foreign(pack(toy_hello()), asked.append) as address:
        remote = RemotePolicy(address, **FAST)
        with pytest.raises(DsrlError, match="went away twice over the same request 'encode'"):
            remote.encode(torch.zeros(1, 1, 4))
    assert len(asked) == 2


def test_an_interrupted_request_leaves_no_answer_behind():
    waiting, go_on, asked = threading.Event(), threading.Event(), []

    def slow(message):
        asked.append(message)
        waiting.set()
        go_on.wait(5)
        return pack({"array": array_out(torch.full((1, 4), float(len(asked))))})

    with foreign(pack(toy_hello()), slow) as address:
        remote = RemotePolicy(address, **FAST)
        receive = remote.link._connection.recv

        def interrupted(timeout):
            waiting.wait(5)
            remote.link._connection.recv = receive
            raise KeyboardInterrupt

        remote.link._connection.recv = interrupted
        with pytest.raises(KeyboardInterrupt):
            remote.encode(torch.zeros(1, 1, 4))
        go_on.set()
        assert remote.encode(torch.zeros(1, 1, 4)).tolist() == [[2.0] * 4]


# -- clients that do not behave ---------------------------------------------------------------------------------------

OBS, NOISE = array_out(torch.zeros(2, 1, 4)), array_out(torch.zeros(2, 4, 2))


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ("a text", "a text message"),
        (b"", "no msgpack"),
        (b"\xc1", "no msgpack"),
        (b"\x91" * 5000, "no msgpack"),
        (b"\xdd\xff\xff\xff\xff", "no msgpack"),
        (msgpack.packb([1]), "a list where a map was expected"),
        (msgpack.packb({1: 2}), "no msgpack"),
        (msgpack.packb({"op": msgpack.ExtType(5, b"x")}), "the op ExtType"),
        (pack({}), "the op None, this policy knows ['decode', 'encode', 'sample']"),
        (pack({"op": "__class__"}), "the op '__class__'"),
        (pack({"op": ["sample"]}), "the op ['sample']"),
        (pack({"op": "sample"}), "no arrays ['obs', 'noise'] for 'sample'"),
        (pack({"op": "sample", "arrays": {"obs": OBS}}), "no arrays ['obs', 'noise'] for 'sample'"),
        (pack({"op": "encode", "arrays": {"obs": OBS, "noise": NOISE}}), "no arrays ['obs'] for 'encode'"),
        (pack({"op": "encode", "arrays": {"obs": NOISE}}), "'obs' has the shape (2, 4, 2), expected (B, 1, 4)"),
        (pack({"op": "encode", "arrays": {"obs": {**OBS, "shape": [-2, 1, 4]}}}), "expected a list of sizes"),
        (pack({"op": "encode", "arrays": {"obs": {**OBS, "shape": [10**8, 1, 4]}}}), "expected 1600000000 bytes"),
        (pack({"op": "encode", "arrays": {"obs": array_out(torch.zeros(0, 1, 4))}}), "batches of [0] rows"),
        (pack({"op": "encode", "arrays": {"obs": array_out(torch.zeros(2000, 1, 4))}}), "one size of 1 to 1024"),
        (
            pack({"op": "sample", "arrays": {"obs": OBS, "noise": array_out(torch.zeros(3, 4, 2))}}),
            "batches of [2, 3] rows",
        ),
        (pack({"op": "encode", "arrays": {"obs": array_out(torch.full((1, 1, 4), torch.nan))}}), "'obs' is nan at"),
    ],
)
def test_a_malformed_request_is_answered_with_what_is_wrong(toy, message, complaint):
    with connect(toy.address) as connection:
        connection.recv()
        connection.send(message)
        assert complaint in unpack(connection.recv(5))["error"]
        connection.send(pack({"op": "sample", "arrays": {"obs": OBS, "noise": NOISE}}))
        assert array_in(unpack(connection.recv(5))["array"], "chunk", (2, 4, 2)).shape == (2, 4, 2)


def test_mutated_requests_never_crash_the_server(toy):
    whole = pack({"op": "sample", "arrays": {"obs": OBS, "noise": NOISE}})
    generator = torch.Generator().manual_seed(0)
    with connect(toy.address) as connection:
        connection.recv()
        for _ in range(500):
            damaged = bytearray(whole)
            for position in torch.randint(len(damaged), (3,), generator=generator).tolist():
                damaged[position] ^= 1 << int(torch.randint(8, (), generator=generator))
            connection.send(
                bytes(damaged[: int(torch.randint(len(damaged) // 2, len(damaged) + 1, (), generator=generator))])
            )
            answer = unpack(connection.recv(5))
            assert set(answer) in ({"array"}, {"error"})
    assert torch.equal(load_policy(toy.address, device="cpu").encode(torch.zeros(1, 1, 4)), torch.zeros(1, 4))


def test_a_client_that_leaves_without_a_word_disturbs_nobody(toy):
    remote = load_policy(toy.address, device="cpu")
    rude = socket.create_connection(("localhost", int(toy.address.rpartition(":")[2])))
    rude.send(b"GET / HTTP/1.1\r\n")
    rude.close()
    with connect(toy.address) as connection:
        connection.recv()
        connection.send(pack({"op": "sample", "arrays": {"obs": OBS, "noise": NOISE}}))
        connection.socket.close()
    assert remote.encode(torch.zeros(1, 1, 4)).shape == (1, 4)


def test_many_keys_keep_their_order(toy):
    spec = PolicySpec({"z": (2,), "a": (1,), "m": (1,)}, action_dim=2, horizon=4, n_action_steps=4, sha256="keys")
    policy = ToyPolicy()
    policy.spec = spec
    with PolicyServer(policy, port=0) as server:
        assert list(load_policy(server.address, device="cpu").spec.obs_shapes) == ["z", "a", "m"]
