"""The model card of an exported adapter: README.md with the YAML head that the Hugging Face Hub
reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

from reflect.types import Arm, by_arm

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reflect.records import Adapter, LessonVersion, Night

Form = Literal["peft", "gguf", "mlx"]
"""For which programs an export is written; a merged model of the form peft is for transformers."""
SERVED = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values of vLLM's --max-lora-rank


@dataclass(frozen=True)
class Export:
    """The content of a card. `lessons`: the versions in the adapter's weights, as the night read
    them."""

    adapter: Adapter
    night: Night | None
    lessons: Sequence[LessonVersion]
    rank: int
    files: Mapping[str, str]  # file name -> sha256, of everything but the card
    merged: bool
    form: Form = "peft"


def card(x: Export) -> str:
    """The text of README.md."""
    parts = [head(x), title(x), usage(x), lessons(x), gate(x), origin(x), files(x)]
    return "\n\n".join(part for part in parts if part) + "\n"


def base_name(name: str) -> str:
    """The name of the base on the Hub; for a path of this machine, its last part."""
    return name.removeprefix("hf:") if name.startswith("hf:") else PurePath(name).name


def head(x: Export) -> str:
    """The YAML header."""
    base = json.dumps(
        base_name(x.adapter.base_model), ensure_ascii=False
    )  # a JSON string is a YAML string
    library = "transformers" if x.merged and x.form == "peft" else x.form
    kind = [f"library_name: {library}", *(["base_model_relation: finetune"] if x.merged else [])]
    tags = ["reflect", *([] if x.merged else ["lora"])]
    rows = [
        f"base_model: {base}",
        *kind,
        "pipeline_tag: text-generation",
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    return "\n".join(["---", *rows, "---"])


def title(x: Export) -> str:
    """The title and what the folder holds."""
    name, base = x.adapter.name, base_name(x.adapter.base_model)
    content = (
        f"{base} with {name} merged into its weights"
        if x.merged
        else f"a LoRA adapter of rank {x.rank} for {base}"
    )
    passed = (
        ""
        if x.adapter.gate.get("ok")
        else "\n\n**It has not passed the gate of its night: see below.**"
    )
    about = (
        "It was trained by reflect (`pip install second-nature`) to answer without lessons in the "
        "prompt as the base answers with the lessons below in its prompt."
    )
    return f"# {name}\n\nThis is {content}. {about}{passed}"


def usage(x: Export) -> str:
    """How to load the folder."""
    if x.form == "gguf":
        return gguf_usage(x)
    if x.form == "mlx":
        command = "mlx_lm.generate --model BASE --adapter-path . --prompt '...'"
        return f"## Use\n\n```console\n$ {command}\n```"
    if x.merged:
        code = (
            "from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM."
            'from_pretrained("FOLDER")  # float32; dtype="bfloat16" halves it'
        )
        return f"## Use\n\n```python\n{code}\n```"
    served = next((rank for rank in SERVED if rank >= x.rank), None)
    command = (
        f"`vllm serve BASE --enable-lora --max-lora-rank {served} "
        f"--lora-modules {x.adapter.name}=FOLDER`"
    )
    if served is None:
        command = f"this one has {x.rank}"
    lines = (
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        'base = AutoModelForCausalLM.from_pretrained("BASE")',
        'model = PeftModel.from_pretrained(base, "FOLDER")',
    )
    ranks = (
        f"vLLM's highest rank is one of {', '.join(map(str, SERVED))}, "
        "and at least that of every adapter"
    )
    return "\n".join(["## Use\n\n```python", *lines, f"```\n\n{ranks}: {command}."])


def gguf_usage(x: Export) -> str:
    """How llama.cpp and Ollama load the file."""
    file = f"{x.adapter.name}.gguf"
    if x.merged:
        server, modelfile = f"llama-server -m {file} --jinja", [f"FROM ./{file}"]
        about = "`llama-quantize` makes it smaller: its weights are float32."
    else:
        server = f"llama-server -m BASE.gguf --lora {file} --jinja"
        modelfile = ["FROM ./BASE.gguf", f"ADAPTER ./{file}"]
        about = "BASE.gguf is the base in llama.cpp's form; quantized, its answers differ slightly."
    name = f"ollama create {x.adapter.name} -f Modelfile"
    blocks = [f"```console\n$ {server}\n```", "Ollama, with this `Modelfile`:"]
    blocks += ["\n".join(["```text", *modelfile, "```"]), f"```console\n$ {name}\n```"]
    return "\n\n".join(["## Use", *blocks, about])


def lessons(x: Export) -> str:
    """The table of lessons that the adapter holds."""
    rows = [
        [row.lesson_id, row.version, row.scope or "everywhere", row.when, row.do]
        for row in x.lessons
    ]
    return "## Lessons in its weights\n\n" + (
        grid(["id", "version", "scope", "when", "do"], rows) if rows else "None."
    )


def gate(x: Export) -> str:
    """The four arms and every check, as the night recorded them."""
    report = x.adapter.gate
    if not report.get("checks"):
        return "## Gate\n\nIt was not evaluated."
    rows = [
        [name, *(f"{arms[arm]['reward']:.2f}" for arm in Arm), arms[Arm.BASE]["n"]]
        for name, arms in ((name, by_arm(x)) for name, x in report.get("arms", {}).items())
    ]
    table = grid(["holdout tasks of", *(arm.heading for arm in Arm), "n"], rows)
    checks = [f"- {_result(check)}: {plain(check['text'])}" for check in report["checks"]]
    about = "Mean reward on held-out tasks, greedy, the same tasks in each arm:"
    return "\n".join([f"## Gate\n\n{about}\n\n{table}\n", *checks])


def _result(check: dict[str, Any]) -> str:
    if not check.get("measured", True):
        return "not measured"
    return "passed" if check["ok"] else "**failed**"


def origin(x: Export) -> str:
    """The command that made the adapter, and all values of its plan."""
    base, fingerprint = plain(base_name(x.adapter.base_model)), x.adapter.base_fingerprint
    lines = [f"- base: {base}, fingerprint `{fingerprint}`"]
    if x.night is not None and x.night.config:
        plan = dict(x.night.config)
        units = {"method": "", "budget": "m", "seed": ""}
        flags = [f"--{name} {plan[name]}{unit}" for name, unit in units.items() if name in plan]
        lines.insert(0, f"- command: `reflect sleep {' '.join(flags)}`, with the lessons above")
        lines.append(f"- plan: `{json.dumps(plan, sort_keys=True)}`")
        lines.append(f"- night: {x.night.id} of {x.night.started:%F}, content hash `{x.night.key}`")
    return "## How it was made\n\n" + "\n".join(lines)


def files(x: Export) -> str:
    """The table of files with their sha256."""
    return "## Files\n\n" + grid(
        ["file", "sha256"], [[name, f"`{digest}`"] for name, digest in sorted(x.files.items())]
    )


def grid(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(plain(str(cell)) for cell in line)} |" for line in lines)


def plain(text: str) -> str:
    """The text in one line, with cell borders and HTML tags escaped."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
