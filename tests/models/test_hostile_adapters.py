"""An adapter is data from outside: whatever is in its folder, the base stays the same to the last bit,
a refusal is one sentence, and a name means the weights that were verified."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import accelerate
import httpx2
import pytest
import torch
from conftest import save_tiny
from hypothesis import HealthCheck, given, settings, strategies
from peft import LoraConfig, PeftModel
from serving import post, serving
from sqlmodel import select
from test_workspace import make_adapter, ws  # noqa: F401  (ws is a fixture)

from reflect.adapters import activation, registry
from reflect.errors import AdapterCorrupt, AdapterError, AdapterMismatch
from reflect.models import adapter_files, load_model
from reflect.models.local import LocalModel
from reflect.models.lora import LoraLayer
from reflect.records import Exchange
from reflect.workspace.workspace import Workspace
from scripts.attacks.hostile_adapters import ATTACKS, LARGE, SILENT, Folder, folders

IDS = torch.tensor([[4, 7, 8, 9, 5, 10]])


def base_hash(network: torch.nn.Module) -> str:
    """sha256 of all parameters and buffers with their names; without those of adapters."""
    total = hashlib.sha256()
    for name, tensor in sorted(
        itertools.chain(network.named_parameters(), network.named_buffers())
    ):
        if ".lora_" not in name:
            total.update(name.replace(".base_layer", "").encode())
            total.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def logits(model: LocalModel) -> torch.Tensor:
    with torch.inference_mode():
        return model.network(input_ids=IDS).logits


def random_adapter(model: LocalModel, folder: Path, seed: int = 0, rank: int = 4) -> Path:
    """Save an adapter that changes the answers."""
    model.new_adapter("made", rank=rank, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.adapter_parameters("made"):
        parameter.data.normal_(std=0.3, generator=generator)
    model.save_adapter("made", folder)
    model.drop_adapter("made")
    return folder


@pytest.fixture
def good(tiny: LocalModel, tmp_path: Path) -> Path:
    return random_adapter(tiny, tmp_path / "good")


# ---- refusals


def test_every_hostile_folder_is_refused_with_one_sentence_and_changes_nothing(
    tiny: LocalModel, good: Path, tmp_path: Path
) -> None:
    before, modules = base_hash(tiny.network), [name for name, _ in tiny.network.named_modules()]
    random_state, wrong = torch.random.get_rng_state(), []
    attacks = {name: attack for name, attack in ATTACKS.items() if name not in LARGE}
    for name, path in folders(good, tmp_path, attacks):
        began = time.monotonic()
        try:
            tiny.load_adapter("x", path)
            wrong.append(f"{name}: loaded")
            tiny.drop_adapter("x")
        except AdapterError as e:
            text = str(e)
            if len(text) > 700 or not text.isprintable() or not e.message.endswith("."):
                wrong.append(f"{name}: {text[:300]!r}")
        except BaseException as e:
            wrong.append(f"{name}: {type(e).__name__}: {e}")
        if time.monotonic() - began > 5:
            wrong.append(f"{name}: {time.monotonic() - began:.1f} s")
        if (path / "executed").exists() or base_hash(tiny.network) != before:
            wrong.append(f"{name}: the base is changed, or code was run")
    assert wrong == [] and tiny.adapters == []
    assert [name for name, _ in tiny.network.named_modules()] == modules
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_differences_without_effect_are_accepted(
    tiny: LocalModel, good: Path, tmp_path: Path
) -> None:
    tiny.load_adapter("good", good)
    with tiny.using("good"):
        want = logits(tiny)
    for name, path in folders(good, tmp_path, SILENT):
        tiny.load_adapter("x", path)
        with tiny.using("x"):
            assert torch.equal(logits(tiny), want), name
        tiny.drop_adapter("x")


@pytest.mark.parametrize("files", [["adapter_config.json"], ["adapter_model.safetensors"]])
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=strategies.data())
def test_flipped_bytes_are_refused_or_are_other_numbers(
    tiny: LocalModel, tmp_path_factory: pytest.TempPathFactory, files: list[str], data: Any
) -> None:
    folder = tmp_path_factory.getbasetemp() / "flipped"
    if not (folder / "adapter_config.json").exists():
        random_adapter(tiny, folder)
    before, whole = base_hash(tiny.network), {name: (folder / name).read_bytes() for name in files}
    refused = ""
    try:
        for name, raw in whole.items():
            size = min(len(raw), 4000)  # the header is where a byte has the most effect
            at = data.draw(strategies.integers(0, size - 1))
            new = data.draw(strategies.binary(min_size=0, max_size=4))
            (folder / name).write_bytes(raw[:at] + new + raw[at + 1 :])
        try:
            tiny.load_adapter("x", folder)
            tiny.drop_adapter("x")
        except AdapterError as e:
            refused = str(e)
    finally:
        for name, raw in whole.items():
            (folder / name).write_bytes(raw)
    assert refused.isprintable() and tiny.adapters == [] and base_hash(tiny.network) == before


@settings(max_examples=50, deadline=None)
@given(
    strategies.recursive(
        strategies.none() | strategies.booleans() | strategies.floats() | strategies.text(max_size=9)
        | strategies.integers(),
        lambda inner: strategies.lists(inner, max_size=3)
        | strategies.dictionaries(strategies.text(max_size=9), inner, max_size=3),
        max_leaves=6,
    ),
    strategies.sampled_from(sorted([*adapter_files.CHECKS, "use_dora", "rank_pattern", "x"])),
)  # fmt: skip
def test_a_value_of_any_type_is_checked(value: object, key: str) -> None:
    """Either it is refused, or the configuration means the same as before or is a number in range."""
    good = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    try:
        config = adapter_files.check_config(good | {key: value})
    except adapter_files.Refused as e:
        refused = str(e)
        config = adapter_files.check_config(good)
    else:
        refused = ""
    assert refused.isprintable()
    assert 1 <= config.rank <= adapter_files.MOST_RANK and 0 <= config.alpha < 1e9


def test_a_folder_name_of_any_kind_is_one_sentence(tiny: LocalModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    names = ["nowhere", "file", "fifo", "loop", "x" * 5000, "nul\0", "\ud83d", "new\nline", ""]
    for name in [*(f"{tmp_path}/{name}" for name in names), "", "/dev/zero", "/proc/self/mem", "/"]:
        with pytest.raises(AdapterError) as caught:
            tiny.load_adapter("x", name)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 700


def test_a_file_that_changes_while_it_is_read_is_refused(
    tiny: LocalModel, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not mapped into memory: a file that is cut meanwhile must not end the process."""
    readv, calls = os.readv, itertools.count()

    def cut(descriptor: int, buffers: Any) -> int:
        if next(calls) == 3:  # the configuration, the length of the header, the header, the data
            os.truncate(good / "adapter_model.safetensors", 100)
        return readv(descriptor, buffers)

    monkeypatch.setattr(os, "readv", cut)
    with pytest.raises(AdapterError, match="changed while it was read"):
        tiny.load_adapter("x", good)


def test_an_error_in_the_middle_leaves_the_base_as_it_was(
    tiny: LocalModel, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, modules = base_hash(tiny.network), [name for name, _ in tiny.network.named_modules()]
    bare, calls, add = logits(tiny), itertools.count(), LoraLayer.add
    tiny.load_adapter("other", good)
    with tiny.using("other"):
        other = logits(tiny)

    def failing(layer: LoraLayer, number: int, weights: Any) -> None:
        if next(calls) == 5:
            raise RuntimeError("CUDA out of memory")
        add(layer, number, weights)

    for dropped in (False, True):
        if dropped:
            tiny.drop_adapter("other")
        calls = itertools.count()
        monkeypatch.setattr(LoraLayer, "add", failing)
        with pytest.raises(RuntimeError):
            tiny.load_adapter("x", good)
        monkeypatch.setattr(LoraLayer, "add", add)
        assert base_hash(tiny.network) == before and torch.equal(logits(tiny), bare)
        if not dropped:
            with tiny.using("other"):
                assert torch.equal(logits(tiny), other)
    assert [name for name, _ in tiny.network.named_modules()] == modules


# ---- plain LoRA, as peft computes it


@pytest.mark.parametrize(
    "more",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1},
        {"target_modules": ["up_proj"], "use_rslora": True, "r": 9},
        {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
    ],
    ids=lambda more: "-".join(map(str, more.values())),
)
def test_adapters_of_peft_compute_the_same(
    tiny: LocalModel, tmp_path: Path, more: dict[str, Any]
) -> None:
    base = load_model(str(save_tiny(tmp_path / "again")))
    config = LoraConfig(**{"r": 3, "lora_alpha": 7, "task_type": "CAUSAL_LM", **more})
    with torch.random.fork_rng():
        torch.manual_seed(2)
        theirs = PeftModel(base.network, config).eval()
        for name, parameter in base.network.named_parameters():
            if ".lora_B." in name:
                parameter.data.normal_()
    theirs.save_pretrained(str(tmp_path / "theirs"))
    tiny.load_adapter("x", tmp_path / "theirs")
    tiny.use("x")
    assert torch.allclose(logits(tiny), logits(base), atol=1e-5)
    tiny.use(None)
    with theirs.disable_adapter():
        assert torch.equal(logits(tiny), logits(base))


def test_a_new_adapter_draws_the_numbers_that_peft_draws(tiny: LocalModel, tmp_path: Path) -> None:
    base = load_model(str(save_tiny(tmp_path / "again")))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        PeftModel(base.network, LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"))
    tiny.new_adapter("x", rank=3, seed=5)
    theirs = [p for name, p in base.network.named_parameters() if ".lora_" in name]
    for mine, its in zip(tiny.adapter_parameters("x"), theirs, strict=True):
        assert torch.equal(mine, its)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_exactly(tiny: LocalModel, good: Path, dtype: torch.dtype) -> None:
    from safetensors.torch import load_file, save_file

    file = good / "adapter_model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    save_file(tensors, file)
    tiny.load_adapter("x", good)
    for layer, pair in tiny.known_adapter("x").layers.items():
        assert torch.equal(pair.a, tensors[adapter_files.tensor_name(layer, "A")].float())
        assert torch.equal(pair.b, tensors[adapter_files.tensor_name(layer, "B")].float())


def test_any_name_is_a_name(tiny: LocalModel, good: Path) -> None:
    """Names are not attributes of a module."""
    before = base_hash(tiny.network)
    names = ["keys", "weight", "llama-3.1", "base_layer", "forward", "a/b", "A_1", "é"]
    for name in names:
        tiny.load_adapter(name, good)
    assert tiny.adapters == names and base_hash(tiny.network) == before
    for name in names:
        tiny.drop_adapter(name)
    assert base_hash(tiny.network) == before
    with pytest.raises(AdapterError, match="not empty"):
        tiny.load_adapter("", good)


def test_layers_are_wrapped_only_while_there_is_an_adapter(tiny: LocalModel, good: Path) -> None:
    modules = [name for name, _ in tiny.network.named_modules()]
    tiny.load_adapter("x", good)
    tiny.use("x")
    assert any(isinstance(module, LoraLayer) for module in tiny.network.modules())
    assert load_model(str(tiny.folder)).lora_layers == tiny.lora_layers
    tiny.drop_adapter("x")
    assert tiny.active is None
    assert [name for name, _ in tiny.network.named_modules()] == modules


def test_layers_whose_weights_are_offloaded_take_adapters(
    tiny: LocalModel, good: Path, tmp_path: Path
) -> None:
    tiny.load_adapter("x", good)
    with tiny.using("x"):
        want = logits(tiny)
    model = load_model(str(save_tiny(tmp_path / "again")))
    accelerate.cpu_offload(model.network, torch.device("cpu"))
    model.load_adapter("x", good)
    model.new_adapter("new", rank=2)
    with model.using("x"):
        assert torch.equal(logits(model), want)


# ---- the bytes that were verified are the bytes that are used


def test_files_that_change_after_the_check_are_not_read_again(
    ws: Workspace,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = make_adapter(ws, "one", [])
    model: Any = ws.model
    activation.load(model, adapter, ws.settings)
    with model.using("one"):
        want = logits(model)
    model.drop_adapter("one")
    folder, other = registry.folder_of(adapter, ws.settings), ws.settings.home_path / "other"
    random_adapter(model, other, seed=9)
    verify = registry.verify

    def swap(*args: Any) -> None:
        verify(*args)
        (other / "adapter_model.safetensors").replace(folder / "adapter_model.safetensors")

    monkeypatch.setattr(registry, "verify", swap)
    activation.load(model, adapter, ws.settings)
    with model.using("one"):
        assert torch.equal(logits(model), want)
    digests = model.known_adapter("one").digests
    assert all(adapter.manifest[name] == digest for name, digest in digests.items())
    monkeypatch.undo()
    with pytest.raises(AdapterCorrupt, match=r"adapter_model\.safetensors differs"):
        activation.load(model, adapter, ws.settings)
    assert model.adapters == ["one"], "what is loaded stays"


def test_hostile_changes_of_an_own_adapter_are_refused(ws: Workspace, tmp_path: Path) -> None:  # noqa: F811
    adapter, model = make_adapter(ws, "one", []), ws.model
    folder, before = registry.folder_of(adapter, ws.settings), base_hash(model.network)  # type: ignore[attr-defined]
    names = [
        "pissa",
        "config fifo",
        "weights link",
        "nan",
        "weights fifo",
        "rank 0",
        "tensor extra",
    ]
    for _, path in folders(folder, tmp_path, {name: ATTACKS[name] for name in names}):
        changed = dataclasses.replace(ws.settings, home=str(path.parent))
        row = adapter.model_copy(update={"path": path.name})
        with pytest.raises(AdapterCorrupt, match=r"differs from its manifest|does not exist"):
            activation.load(model, row, changed)
    assert base_hash(model.network) == before  # type: ignore[attr-defined]


# ---- a server


def ask(base: str, model: str = "tiny") -> tuple[int, str, str]:
    """(status, adapter, answer)"""
    body = {"messages": [{"role": "user", "content": "w1 w2"}], "max_tokens": 9, "temperature": 0}
    reply = post(base, "chat/completions", {"model": model, **body})
    if reply.status_code != 200:
        return reply.status_code, "", reply.json()["error"]["message"]
    answer = reply.json()["choices"][0]["message"]["content"]
    return 200, reply.headers["x-reflect-adapter"], answer


def load(base: str, name: str, path: Path | str) -> Any:
    body = json.dumps({"lora_name": name, "lora_path": str(path)})  # also half a surrogate
    return httpx2.post(f"{base}/load_lora_adapter", content=body, timeout=60)


SERVED = [
    "pissa", "layer_replication", "config fifo", "weights fifo", "weights 10 GB",
    "header 2**63", "header deep", "nan", "config surrogate", "config newline",
]  # fmt: skip


def test_a_server_refuses_hostile_folders_while_others_are_answered(
    tiny: LocalModel, good: Path, tmp_path: Path
) -> None:
    before = base_hash(tiny.network)
    with serving(tmp_path / "lessons.db", tiny) as base:
        bare, stop, seen = ask(base), threading.Event(), set()

        def others() -> int:
            count = 0
            while not stop.is_set():
                seen.add(ask(base))
                count += 1
            return count

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            counted = pool.submit(others)
            try:
                for name, path in folders(good, tmp_path, {x: ATTACKS[x] for x in SERVED}):
                    reply = load(base, "x", path)
                    error = reply.json()["error"]
                    assert reply.status_code == 400 and error["code"] == "adapter_error", name
                    assert error["message"].isprintable(), name
                    assert ask(base, "x")[0] == 404, "a refused name is no model"
            finally:
                stop.set()
            assert counted.result(30) > 0 and seen == {bare}
        assert load(base, "x", good).status_code == 200 and ask(base, "x")[1] == "x"
        assert post(base, "unload_lora_adapter", {"lora_name": "x"}).status_code == 200
        assert ask(base) == bare
        for name in ("", "two words", "new\nline", "é", "\ud83d", "x" * 201):
            assert load(base, name, good).status_code == 400, name
        for path in ("/nowhere", "", f"{tmp_path}/nul\0", f"{tmp_path}/\ud83d", "/" + "x" * 5000):
            assert load(base, "y", path).status_code in (400, 404), path
    assert base_hash(tiny.network) == before and tiny.adapters == []


def test_numbers_that_overflow_fail_the_requests_of_their_adapter_only(
    tiny: LocalModel, tmp_path: Path
) -> None:
    tiny.new_adapter("made")
    for parameter in tiny.adapter_parameters("made"):
        parameter.data.fill_(1e30)
    tiny.save_adapter("made", tmp_path / "huge")
    tiny.drop_adapter("made")
    with serving(tmp_path / "lessons.db", tiny) as base:
        before = ask(base)
        assert load(base, "x", tmp_path / "huge").status_code == 200
        status, _, message = ask(base, "x")
        assert status == 500 and "not a number" in message
        assert ask(base) == before


def test_a_name_never_means_other_weights(tiny: LocalModel, good: Path, tmp_path: Path) -> None:
    other = random_adapter(tiny, tmp_path / "other", seed=5)
    with serving(tmp_path / "lessons.db", tiny) as base:
        assert load(base, "x", good).status_code == 200
        first = ask(base, "x")
        assert load(base, "x", other).status_code == 400, "taken, also by a name with other files"
        assert ask(base, "x") == first
        assert load(base, "tiny", other).status_code == 400
        # A folder that changes after it was loaded, and a name that is loaded again.
        (other / "adapter_model.safetensors").replace(good / "adapter_model.safetensors")
        assert ask(base, "x") == first
        post(base, "unload_lora_adapter", {"lora_name": "x"})
        assert load(base, "x", good).status_code == 200
        assert ask(base, "x")[2] != first[2], "loaded anew: the weights of now"
        # Of ten loads of one name at once, one is accepted.
        post(base, "unload_lora_adapter", {"lora_name": "x"})
        with concurrent.futures.ThreadPoolExecutor(10) as pool:
            statuses = list(pool.map(lambda _: load(base, "x", good).status_code, range(10)))
        assert sorted(statuses) == [200, *[400] * 9]


def test_a_client_cannot_put_weights_under_the_name_of_the_profiles_adapter(
    ws: Workspace,  # noqa: F811
    tmp_path: Path,
) -> None:
    make_adapter(ws, "night-1", [])
    model: Any = ws.model
    foreign = random_adapter(model, tmp_path / "foreign", seed=8)
    with serving(ws.settings.db, model, ws.settings) as base:
        name = ask_name(base)
        bare = ask(base, name)
        assert load(base, "night-1", foreign).status_code == 200
        theirs = ask(base, "night-1")
        ws.promote("night-1")
        model.drop_adapter("night-1")  # what another process would do: only the pointer is new
        ours = ask(base, name)
        assert ours[1] == "night-1" and len({bare[2], theirs[2], ours[2]}) == 3
        assert ask(base, "night-1") == theirs, "the client's name means the client's weights"
        with model.using("night-1"):
            assert torch.equal(logits(model), expected(ws, model))
        rows = post_exchanges(ws)
        assert [(row.model, row.adapter_id is not None) for row in rows] == [
            (name, False),
            ("night-1", False),
            (name, True),
            ("night-1", False),
        ]


def ask_name(base: str) -> str:
    return httpx2.get(f"{base}/models").json()["data"][0]["id"]


def expected(ws: Workspace, model: LocalModel) -> torch.Tensor:  # noqa: F811
    """The logits of the profile's adapter, loaded by itself."""
    model.load_adapter("alone", ws.settings.home_path / "adapters" / "night-1")
    with model.using("alone"):
        result = logits(model)
    model.drop_adapter("alone")
    return result


def post_exchanges(ws: Workspace) -> list[Any]:  # noqa: F811
    with ws.store.read() as s:
        return list(s.exec(select(Exchange).order_by(Exchange.id)))


def test_a_mismatch_names_the_layer(tiny: LocalModel, good: Path, tmp_path: Path) -> None:
    folder = Folder(good, random.Random(0))
    folder.write_config(target_modules=[*folder.config["target_modules"], "lm_head"])
    with pytest.raises(AdapterMismatch, match="no linear layer 'lm_head'"):
        tiny.load_adapter("x", good)
    assert json.loads((good / "adapter_config.json").read_text())["r"] == 4
