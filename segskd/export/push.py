"""Uploads packages to the Hugging Face hub. A model repository there holds the files of the zip."""

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
from segskd.export.certificate import CERTIFICATE, Package
from segskd.export.formats import FORMATS, Spec
from segskd.models.build import load
from segskd.standalone import narrow

TOKEN = "HF_TOKEN"
README = "README.md"
NARROW = Path(narrow.__file__).name
TRANSPORT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
"""What the hub's library raises when no server answers: the base class of its errors, from its HTTP library."""
PUSHED_BY_SMP = ("config.json", "model.safetensors", README)
"""The files that segmentation_models_pytorch's push_to_hub writes."""


class Hub:
    """A model repository, OWNER/NAME, and a token that may write to it."""

    def __init__(self, repository: str) -> None:
        """Contacts no server. Raises UserError for a name that no repository can have, or when there is no token."""
        try:
            validate_repo_id(repository)
        except HFValidationError as error:
            raise UserError(f"{repository} is no name of a repository: write OWNER/NAME") from error
        if repository.count("/") != 1:
            raise UserError(f"{repository} is no name of a repository: write OWNER/NAME")
        token = os.environ.get(TOKEN, "").strip()
        if not token:
            raise UserError(f"the hub needs a token that may write: set the environment variable {TOKEN} to it")
        if not re.fullmatch(r"[!-~]+", token):
            raise UserError(f"the value of {TOKEN} is no token: it has spaces or characters that no token has")
        self.repository = repository
        self._token = token
        self._api = HfApi(token=token)

    def push(self, package: Package, spec: Spec) -> str:
        """Uploads all files of the package and returns the repository's address. A new repository is private.

        Safetensors are uploaded by segmentation_models_pytorch's push_to_hub, all other files by the hub's client.
        Raises UserError when the hub refuses or can't be reached, and when the repository holds a network in another
        format.
        """
        with tempfile.TemporaryDirectory(prefix="segskd-push-") as scratch, _hub_errors(self.repository):
            with zipfile.ZipFile(package.path) as archive:
                archive.extractall(scratch)
            (folder,) = Path(scratch).iterdir()
            card = _with_front_matter((folder / README).read_text(encoding="utf-8"), spec)
            url = self._api.create_repo(self.repository, private=True, exist_ok=True)
            self._check_format(spec)
            if not spec.kind.traced:
                self._push_model(folder, card)
            else:
                card.save(folder / README)
            uploaded = None if spec.kind.traced else list(PUSHED_BY_SMP)
            stale = None if (folder / NARROW).exists() else NARROW  # left by a pruned network that was pushed before
            self._api.upload_folder(
                repo_id=self.repository,
                folder_path=folder,
                commit_message=f"{package.certificate.run} as {spec.name}, with its certificate",
                ignore_patterns=uploaded,
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
            delete_patterns=CERTIFICATE,  # better no certificate for a moment than that of another network
        )

    def _check_format(self, spec: Spec) -> None:
        """Raises UserError when the repository holds a network in another format: predict.py can open only one."""
        there = set(self._api.list_repo_files(self.repository))
        for name, other in FORMATS.items():
            if name != spec.format and there & set(other.files[:1]):
                raise UserError(f"{self.repository} holds {other.files[0]}: push {spec.format} to another repository")


def _with_front_matter(text: str, spec: Spec) -> ModelCard:
    """The package's README with the metadata by which the hub sorts models."""
    data = ModelCardData(
        library_name=spec.kind.hub_library or spec.format,
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "knowledge-distillation", "segskd", spec.format],
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """Turns errors of the hub and of the network into UserErrors."""
    try:
        yield
    except (TRANSPORT_ERROR, OSError) as error:
        message = str(getattr(error, "server_message", None) or error) or type(error).__name__
        raise UserError(f"the push to {repository} failed: {' '.join(message.split())}") from error
