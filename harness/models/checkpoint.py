"""Weights of a judge or of another model that is not the evaluated one: a repository of the Hub, pinned to a commit."""

import re
from pathlib import Path
from typing import NamedTuple

from harness.errors import ModelError, Problem

CAUSAL_FILES = ("*.json", "*.jinja", "*.safetensors", "tokenizer.model")
"""What a causal language model is loaded from; Meta's repositories hold the weights a second time in another format."""


class Checkpoint(NamedTuple):
    """A repository of the Hub at a commit.

    Attributes:
        repo: ``owner/name``.
        revision: the commit, 40 hexadecimal digits; None is an error that names the setting.
        setting: the name of the field that holds the commit.
        files: patterns of the files to download; None is all.
        owner: the path of the settings that have the field.
    """

    repo: str
    revision: str | None
    setting: str = "revision"
    files: tuple[str, ...] | None = None
    owner: str = "judge"

    def problems(self) -> list[Problem]:
        """Return an error if the revision is not a commit."""
        if self.revision is None or re.fullmatch(r"[0-9a-f]{40}", self.revision):
            return []
        return [Problem(self.setting, f"{self.revision} is not a commit; expected 40 hexadecimal digits")]

    def preflight(self) -> list[Problem]:
        """Return an error if the revision is missing, or if the files are not cached and the Hub is set offline."""
        from huggingface_hub import constants

        try:
            self.folder(local_only=True)
        except ModelError as error:
            return [Problem("", str(error))] if self.revision is None or constants.HF_HUB_OFFLINE else []
        return []

    def folder(self, *, local_only: bool = False) -> Path:
        """Return the folder of the files, downloading those that are not in the Hub's cache.

        Args:
            local_only: do not download.

        Raises:
            ModelError: the files are not available.
        """
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

        if self.revision is None:
            raise ModelError(
                f"`{self.owner}.{self.setting}` is null for {self.repo}; expected a commit of this repository, 40 "
                f"hexadecimal digits (https://huggingface.co/{self.repo}/commits/main). Set it in the "
                f"option's file in conf/{self.owner.split('.')[0]}/"
            )
        where = f"{self.repo} at {self.revision}"
        patterns = None if self.files is None else list(self.files)
        try:
            return Path(
                snapshot_download(
                    self.repo, revision=self.revision, allow_patterns=patterns, local_files_only=local_only
                )
            )
        except GatedRepoError:
            raise ModelError(f"{where} is gated: accept its terms on the Hub and set HF_TOKEN") from None
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            raise ModelError(
                f"{where} is neither in the Hub's cache nor can it be downloaded ({type(error).__name__}). Fetch it on "
                "a machine with network access (`harness doctor --fetch EXPERIMENT`) or point HF_HOME to a cache that "
                "has it"
            ) from None
