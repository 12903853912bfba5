"""What several tests share: databases of both kinds, the pocket model, a tiny random model in the
same layout."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from postgres import Missing, Server, server

if TYPE_CHECKING:
    from sqlmodel import Session

    from reflect.config import Settings
    from reflect.models.local import LocalModel
    from reflect.store import Store

# A shell that starts the tests in the background lets them ignore SIGINT, and their programs too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The fuzzers: few fixed examples by default; by hand, about ten minutes of new ones:
# pytest -k fuzz --hypothesis-profile deep
settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    max_examples=40,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile("deep", settings.get_profile("ci"), derandomize=False, max_examples=1500)
settings.load_profile("ci")

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|> ' + m['content'] + ' <|end|> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def threads() -> Iterator[None]:
    """One torch thread: the tests share the machine, and sums come out the same."""
    try:
        import reflect.models  # noqa: F401, I001  first: it sets how torch's threads wait
        import torch
    except ImportError:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def imports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test leaves a folder of its own in the search path, or a module from there imported."""
    before, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(
            str(tmp_path_factory.getbasetemp())
        ):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and no settings from outside."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("REFLECT_")] + ["VISUAL", "EDITOR"]:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with the database in the test's own folder."""
    from reflect.config import Settings

    return Settings(db=str(tmp_path / "lessons.db"))


@pytest.fixture
def bwrap() -> str:
    """The sandbox's program. Skips where there is none; what is refused then is tested always."""
    from reflect.errors import SandboxError
    from reflect.sandbox import bubblewrap

    try:
        return bubblewrap.require()
    except SandboxError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="session")
def pocket_model() -> LocalModel:
    from reflect.models import load_model

    return load_model("pocket")


@pytest.fixture
def pocket(pocket_model: LocalModel) -> Iterator[LocalModel]:
    """The built-in model, loaded once; adapters that a test leaves behind are dropped."""
    yield pocket_model
    for name in list(pocket_model.adapters):
        pocket_model.drop_adapter(name)


def save_tiny(
    folder: Path, *, seed: int = 0, template: str | None = TEMPLATE, **changes: object
) -> Path:
    """Write a random little Llama (2 layers of width 64, 128 words) as a Hugging Face model
    directory."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    special = ["<pad>", "<unk>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    words = [*special, *(f"w{i}" for i in range(128 - len(special)))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|end|>",
        additional_special_tokens=special[3:],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    shape = {
        "vocab_size": len(words),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "bos_token_id": None,
        "initializer_range": 0.3,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = LlamaForCausalLM(LlamaConfig(**{**shape, **changes}))
    network.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> LocalModel:
    """A fresh random model: its answers are noise, its machinery is that of any model."""
    from reflect.models import load_model

    return load_model(str(save_tiny(tmp_path / "tiny")))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server for the whole session. Skipped where there is none, unless
    REFLECT_TEST_POSTGRES=require."""
    try:
        with server() as running:
            yield running
    except Missing as e:
        if os.environ.get("REFLECT_TEST_POSTGRES") == "require":
            pytest.fail(f"REFLECT_TEST_POSTGRES=require, but {e}")
        pytest.skip(str(e))


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A path or URL at which nothing was ever opened, on each of the two kinds of database."""
    if request.param == "sqlite":
        yield str(tmp_path / "lessons.db")
    else:
        postgres = request.getfixturevalue("postgres")
        url = postgres.empty()
        yield url
        postgres.drop(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A new database of each of the two kinds."""
    from reflect.store import Store

    if request.param == "sqlite":
        yield Store(tmp_path / "lessons.db")
    else:
        postgres = request.getfixturevalue("postgres")
        url = postgres.fresh()
        opened = Store(url)
        yield opened
        opened.close()
        postgres.drop(url)


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    """A new SQLite database, lessons.db in tmp_path: for tests of what does not depend on the database."""
    from reflect.store import Store

    opened = Store(tmp_path / "lessons.db")
    yield opened
    opened.close()


@pytest.fixture
def sqlite_session(sqlite_store: Store) -> Iterator[Session]:
    """A transaction on the test's SQLite database."""
    with sqlite_store.write() as session:
        yield session


@pytest.fixture
def s(store: Store) -> Iterator[Session]:
    """A transaction on the test's store."""
    with store.write() as session:
        yield session
