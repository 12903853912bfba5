"""An adapter on its way out: peft itself loads the folder, transformers loads the merged model; and
their cards."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from test_workspace import ASK, make_adapter
from test_workspace import ws as tiny_ws  # noqa: F401  (a fixture)
from transformers import AutoModelForCausalLM, AutoTokenizer

from reflect.adapters import registry
from reflect.adapters.export import write_peft
from reflect.adapters.model_card import base_name, grid
from reflect.cli import run_command
from reflect.errors import AdapterCorrupt, AdapterMismatch, UnknownName, UsageError
from reflect.models import load_model
from reflect.records import Adapter
from reflect.store import nights
from reflect.workspace.workspace import Workspace

GATE = {
    "ok": True,
    "reasons": [],
    "arms": {
        "my.jsonl": {
            arm: {"reward": r, "n": 3, "ci95": [0, 1]}
            for arm, r in (
                ("base_out", 0.125),
                ("base_in", 1.0),
                ("adapter_out", 0.875),
                ("adapter_in", 0.75),
            )
        }
    },
    "checks": [
        {
            "name": "gain",
            "ok": True,
            "value": 0.9,
            "limit": 0.8,
            "text": "the weights keep 90% | of <it>",
        }
    ],
}


@pytest.fixture
def slept(tiny_ws: Workspace) -> tuple[Workspace, Adapter]:  # noqa: F811
    """A workspace with one adapter that passed its gate, and the night that made it."""
    ws = tiny_ws
    lesson = ws.lessons.add("w1 | w2", "say <b>w9</b>", scope="my.jsonl")
    made = make_adapter(ws, "one", [lesson.id or 0])
    with ws.store.write() as s:
        adapter = nights.set_adapter(s, made.id, gate=made.gate | GATE)
        night = nights.get_night(s, adapter.night_id)
        night.config = {"method": "staged", "budget": 0.5, "seed": 3, "rank": 4}
    return ws, adapter


def logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([[4, 7, 8, 9, 5, 10], [4, 99, 98, 97, 5, 20]])
    with torch.inference_mode():
        return model(input_ids=ids).logits


def front(folder: Path) -> dict[str, Any]:
    """The YAML head of the card."""
    text = (folder / "README.md").read_text()
    return yaml.safe_load(re.fullmatch(r"---\n(.*?)\n---\n.*", text, re.DOTALL)[1])


def test_peft_itself_loads_the_folder(slept: tuple[Workspace, Adapter], tmp_path: Path) -> None:
    ws, _ = slept
    out = ws.adapters.export("one", tmp_path / "out")
    ws.promote("one")
    ours = logits(ws.model.network)
    base = AutoModelForCausalLM.from_pretrained(ws.settings.model, dtype=torch.float32)
    bare = logits(base)
    theirs = logits(PeftModel.from_pretrained(base, str(out)).eval())
    assert torch.allclose(ours, theirs, atol=1e-5) and not torch.allclose(ours, bare, atol=1e-2)


def test_the_card_tells_where_it_comes_from(
    slept: tuple[Workspace, Adapter], tmp_path: Path
) -> None:
    ws, adapter = slept
    out = ws.adapters.export("one", tmp_path / "deep" / "out")
    head = front(out)
    assert (head["base_model"], head["library_name"], head["tags"]) == (
        "tiny",
        "peft",
        ["reflect", "lora"],
    )
    text = (out / "README.md").read_text()
    assert str(tmp_path) not in text, "no path of this machine"
    assert r"| 1 | 1 | my.jsonl | w1 \| w2 | say &lt;b>w9&lt;/b> |" in text
    assert "| my.jsonl | 0.12 | 1.00 | 0.88 | 0.75 | 3 |" in text
    assert (
        r"- passed: the weights keep 90% \| of &lt;it>" in text
        and "not passed the gate" not in text
    )
    assert "reflect sleep --method staged --budget 0.5m --seed 3" in text
    assert adapter.base_fingerprint in text and "--max-lora-rank 8" in text
    for name, digest in adapter.manifest.items():
        assert f"| {name} | `{digest}` |" in text
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert {p.name for p in out.iterdir()} == {*adapter.manifest, "README.md"}
    assert not list(out.parent.glob(".*.part"))


def test_a_base_from_the_hub_is_named_as_the_hub_names_it(
    slept: tuple[Workspace, Adapter], tmp_path: Path
) -> None:
    ws, adapter = slept
    assert base_name("hf:org/name") == "org/name" and base_name("/home/me/model/") == "model"
    assert base_name("pocket") == "pocket"
    (tmp_path / "out").mkdir()
    hub = Adapter(**adapter.model_dump() | {"base_model": "hf:org/name"})
    write_peft(hub, ws.settings, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/name" and config["r"] == 4


def test_a_merged_model_is_an_ordinary_one(
    slept: tuple[Workspace, Adapter], tmp_path: Path
) -> None:
    ws, _adapter = slept
    out = ws.adapters.export("one", tmp_path / "merged", merge=True)
    assert ws.model.adapters == [], "the workspace's own model is left alone"
    ws.promote("one")
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert torch.allclose(logits(merged), logits(ws.model.network), atol=1e-4)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert AutoTokenizer.from_pretrained(out).chat_template == ws.model.tokenizer.chat_template
    again = load_model(str(out))
    greedy = [dataclasses.replace(request, temperature=0.0) for request in ASK]
    assert again.sample(greedy) == ws.model.sample(greedy)
    head = front(out)
    assert (head["library_name"], head["base_model"]) == (
        "transformers",
        "tiny",
    ) and "lora" not in head["tags"]
    assert "merged into its weights" in (out / "README.md").read_text()
    other = dataclasses.replace(ws.settings, model="pocket")
    with pytest.raises(AdapterMismatch, match="another base"):
        Workspace(other).adapters.export("one", tmp_path / "foreign", merge=True)
    assert not (tmp_path / "foreign").exists() and not list(tmp_path.glob(".*.part"))


def test_nothing_is_overwritten_without_a_word(
    slept: tuple[Workspace, Adapter], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ws, _ = slept
    words = ["adapters", "export", "one", "--db", ws.settings.db, "--model", ws.settings.model]
    assert run_command(words) == 0
    assert (
        capsys.readouterr().out == "one\n"
        and (tmp_path / "one" / "adapter_model.safetensors").is_file()
    )
    (tmp_path / "one" / "README.md").write_text("mine")
    assert run_command(words) == 2 and (tmp_path / "one" / "README.md").read_text() == "mine"
    assert "--yes" in capsys.readouterr().err
    assert (
        run_command([*words, "--yes"]) == 0
        and "## Lessons" in (tmp_path / "one" / "README.md").read_text()
    )
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letters.txt").write_text("dear")
    with pytest.raises(UsageError, match="no exported adapter"):
        ws.adapters.export("one", tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "letters.txt").read_text() == "dear"
    with pytest.raises(UnknownName):
        ws.adapters.export("two")


def content(folder: Path) -> dict[str, bytes]:
    """The bytes of all files below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in registry.files(folder)}


def test_an_export_onto_an_export_keeps_files_of_others(
    slept: tuple[Workspace, Adapter], tmp_path: Path
) -> None:
    ws, adapter = slept
    out = ws.adapters.export("one", tmp_path / "out")
    first = content(out)
    mine = {
        "letters.txt": b"dear",
        ".git/HEAD": b"ref: refs/heads/main",
        "tokenizer.json": b"mine",
        "runs/adapter_model.safetensors": b"mine",
    }
    for name, data in mine.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(data)
    (out / "link").symlink_to(tmp_path / "elsewhere")
    (out / "empty").mkdir()
    (out / "adapter_config.json").write_text("{}")
    assert ws.adapters.export("one", out, overwrite=True) == out
    assert content(out) == first | mine
    assert (out / "link").is_symlink() and (out / "empty").is_dir()
    # A merged model has a tokenizer too: the name belongs to another file, so nothing is written.
    with pytest.raises(UsageError, match=r"tokenizer\.json exists and is not from an export"):
        ws.adapters.export("one", out, merge=True, overwrite=True)
    assert content(out) == first | mine
    (out / "tokenizer.json").unlink()
    del mine["tokenizer.json"]
    # What only the former export has is removed, unless a person has changed it since.
    (out / "reflect.json").write_text("changed")
    ws.adapters.export("one", out, merge=True, overwrite=True)
    merged = content(out)
    assert merged.keys() > mine.keys() | {"config.json", "model.safetensors", "reflect.json"}
    assert "adapter_model.safetensors" not in merged and merged["reflect.json"] == b"changed"
    (out / "reflect.json").unlink()
    ws.adapters.export("one", out, overwrite=True)
    assert content(out) == first | mine
    assert not list(tmp_path.glob(".*.part"))
    assert adapter.manifest.keys() == first.keys() - {"README.md"}


def test_a_target_that_cannot_be_written_is_one_sentence(
    slept: tuple[Workspace, Adapter],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ws, _ = slept
    exported = ws.adapters.export("one", tmp_path / "exported")
    for name in ("file", "full/letters.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("dear")
    (tmp_path / "to-export").symlink_to(exported)
    (tmp_path / "to-folder").symlink_to(tmp_path / "full")
    (tmp_path / "to-file").symlink_to(tmp_path / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "no-card").mkdir()
    (tmp_path / "no-card" / "adapter_config.json").write_text("{}")
    (tmp_path / "not-ours").mkdir()
    (tmp_path / "not-ours" / "README.md").mkdir()
    (tmp_path / "not-ours" / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "fifo")
    before = content(tmp_path)
    targets = [
        *("file", "file/below", "full", "to-export", "to-folder", "to-file", "dangling", "loop"),
        *("loop/below", "dangling/../x/\0", "no-card", "not-ours", "fifo", "fifo/below", "x" * 300),
        *("exported/adapter_config.json", "exported/README.md/below"),
    ]
    monkeypatch.chdir(tmp_path / "full")
    command = ["adapters", "export", "one", "--db", ws.settings.db, "-m", ws.settings.model]
    for target in [*(str(tmp_path / x) for x in targets), "/", "/dev/null", "/proc/x", ".", ".."]:
        with pytest.raises(UsageError):
            ws.adapters.export("one", target, overwrite=True)
        if "\0" not in target:
            assert run_command([*command, "--yes", "--out", target]) == 2, target
            error = capsys.readouterr().err
            assert "Traceback" not in error and 1 <= len(error.splitlines()) <= 2, error
        assert content(tmp_path) == before, target
    # A missing parent is made; a folder that is empty is used.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    ws.adapters.export("one", "a/b/c")
    monkeypatch.chdir(tmp_path / "empty")
    ws.adapters.export("one", ".")
    assert content(tmp_path / "a/b/c") == content(tmp_path / "empty") == content(exported)
    assert not list(tmp_path.rglob("*.part"))


def test_an_export_that_fails_leaves_the_old_one(
    slept: tuple[Workspace, Adapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws, _ = slept
    out = ws.adapters.export("one", tmp_path / "out")
    before = content(out)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(registry, "flush", full)
    for target in (out, tmp_path / "new"):
        with pytest.raises(OSError, match="No space"):
            ws.adapters.export("one", target, overwrite=True)
    assert content(tmp_path) == {f"out/{name}": data for name, data in before.items()} | {
        name: data for name, data in content(tmp_path).items() if not name.startswith("out/")
    }
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".*.part"))


def test_a_damaged_or_revoked_one_is_refused(
    slept: tuple[Workspace, Adapter], tmp_path: Path
) -> None:
    ws, adapter = slept
    ws.lessons.revoke(1)
    with pytest.raises(UsageError, match="revoked or retired: lesson 1"):
        ws.adapters.export("one", tmp_path / "out")
    ws.lessons.undo(1)
    file = registry.folder_of(adapter, ws.settings) / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    for merge in (False, True):
        with pytest.raises(AdapterCorrupt, match="damaged"):
            ws.adapters.export("one", tmp_path / "out", merge=merge)
    assert not (tmp_path / "out").exists()


def test_one_that_did_not_pass_says_so(slept: tuple[Workspace, Adapter], tmp_path: Path) -> None:
    ws, adapter = slept
    failed = [GATE["checks"][0] | {"ok": False}]
    with ws.store.write() as s:
        nights.set_adapter(
            s, adapter.id, status="rejected", gate=adapter.gate | {"ok": False, "checks": failed}
        )
    text = (ws.adapters.export("one", tmp_path / "out") / "README.md").read_text()
    assert "**It has not passed the gate" in text and "**failed**" in text


def test_a_table_stays_a_table_whatever_is_in_it() -> None:
    lines = grid(["a", "b"], [["x | y\n\n# z", "<script>"]]).splitlines()
    assert lines == ["| a | b |", "| --- | --- |", r"| x \| y # z | &lt;script> |"]
