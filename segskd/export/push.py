"""Exports on the Hugging Face hub: a model repository that holds what the zip holds."""

from __future__ import annotations

import os
import re
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from segskd.errors import UserError
from segskd.export.existing import CERTIFICATE, Package
from segskd.export.formats import FORMATS, Spec
from segskd.models.build import load
from segskd.standalone import narrow

TOKEN = "HF_TOKEN"
README = "README.md"
NARROW = Path(narrow.__file__).name
TRANSPORT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
"""What the hub's library raises where nobody answers: the base of its own errors, whichever HTTP library it uses."""
OF_THE_MIXIN = ("config.json", "model.safetensors", README)
"""What segmentation_models_pytorch's own push_to_hub writes."""


class Hub:
    """A repository of models, OWNER/NAME, and the right to write to it."""

    def __init__(self, repository: str) -> None:
        """Asks nobody yet. Raises UserError for what can't be a repository, or when the environment has no token."""
        try:
            validate_repo_id(repository)
        except HFValidationError as error:
            raise UserError(f"{repository} can't be a repository: write OWNER/NAME") from error
        if repository.count("/") != 1:
            raise UserError(f"{repository} can't be a repository: write OWNER/NAME")
        token = os.environ.get(TOKEN, "").strip()
        if not token:
            raise UserError(f"the hub wants a token that may write: put it into the environment as {TOKEN}")
        if not re.fullmatch(r"[!-~]+", token):
            raise UserError(f"what {TOKEN} holds can't be a token: it has spaces or letters that none has")
        self.repository = repository
        self._token = token
        self._api = HfApi(token=token)

    def push(self, package: Package, spec: Spec) -> str:
        """Writes all files of the package; returns the repository's address. A new repository is private.

        safetensors go by segmentation_models_pytorch's push_to_hub, all else beside them. Raises UserError when
        the hub refuses or can't be reached, and when the repository holds a network in another format.
        """
        with tempfile.TemporaryDirectory(prefix="segskd-push-") as scratch, _refusals_told(self.repository):
            with zipfile.ZipFile(package.path) as archive:
                archive.extractall(scratch)
            (folder,) = Path(scratch).iterdir()
            card = _with_front_matter((folder / README).read_text(encoding="utf-8"), spec)
            url = self._api.create_repo(self.repository, private=True, exist_ok=True)
            self._check_format(spec)
            if spec.format == "safetensors":
                self._push_model(folder, card)
            else:
                card.save(folder / README)
            left = list(OF_THE_MIXIN) if spec.format == "safetensors" else None
            stale = None if (folder / NARROW).exists() else NARROW  # of a pruned network that was pushed before
            self._api.upload_folder(
                repo_id=self.repository,
                folder_path=folder,
                commit_message=f"{package.certificate.run} as {spec.name}, with its certificate",
                ignore_patterns=left,
                delete_patterns=stale,
            )
        return str(url)

    def _push_model(self, folder: Path, card: ModelCard) -> None:
        model = cast(Any, load(folder))
        model.generate_model_card = lambda **_: card
        model.push_to_hub(
            self.repository,
            token=self._token,
            private=True,
            commit_message="The network",
            delete_patterns=CERTIFICATE,  # until the new one comes there is none, rather than another network's
        )

    def _check_format(self, spec: Spec) -> None:
        """Two networks in one place would be one too many for predict.py."""
        there = set(self._api.list_repo_files(self.repository))
        for name, other in FORMATS.items():
            if name != spec.format and there & set(other.files[:1]):
                raise UserError(f"{self.repository} holds {other.files[0]}: push {spec.format} to another repository")


def _with_front_matter(text: str, spec: Spec) -> ModelCard:
    """The package's page, with what the hub sorts models by."""
    libraries = {"safetensors": "segmentation-models-pytorch", "pt2": "pytorch"}
    data = ModelCardData(
        library_name=libraries.get(spec.format, spec.format),
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "knowledge-distillation", "segskd", spec.format],
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


@contextmanager
def _refusals_told(repository: str) -> Iterator[None]:
    """Makes a UserError of what the hub, or the way to it, has against a push."""
    try:
        yield
    except (TRANSPORT_ERROR, OSError) as error:
        said = str(getattr(error, "server_message", None) or error) or type(error).__name__
        raise UserError(f"the push to {repository} failed: {' '.join(said.split())}") from error
