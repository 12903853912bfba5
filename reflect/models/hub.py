"""Models of the Hugging Face hub: downloaded once, then read from its cache."""

from __future__ import annotations

from pathlib import Path

from reflect.errors import ModelError, UnknownName

FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


def download(repo: str, known: str) -> Path:
    """The local snapshot of a model, downloaded if it is missing. `known`: the hint for an unknown
    name.

    UnknownName for text that cannot be a name, ModelError for a model that does not exist, is
    gated, or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(repo, allow_patterns=FILES))
    except HFValidationError as e:
        raise UnknownName(f"'{repo}' is no name of a model on the Hugging Face hub.", known) from e
    except GatedRepoError as e:
        raise ModelError(
            f"The model hf:{repo} is gated: its owner requires that you accept a licence.",
            f"Accept it at https://huggingface.co/{repo}, then `hf auth login` (or set HF_TOKEN), "
            "and run this again.",
        ) from e
    except RepositoryNotFoundError as e:
        raise ModelError(
            f"There is no model hf:{repo} on the Hugging Face hub, or it is private.",
            "Check its name; for a private model, run `hf auth login` first.",
        ) from e
    except Exception as e:  # no network, disk full, a broken cache
        causes = (e, e.__cause__, e.__context__)
        why = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
            why = "HF_HUB_OFFLINE is set."
        raise ModelError(
            f"The model hf:{repo} is not on this machine and cannot be fetched: {why}",
            "Check its name and the network, or give the path of a model directory.",
        ) from e
