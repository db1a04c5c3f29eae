"""Data sources: a local file, or a file of a Hub dataset at a pinned commit; verified when it is read."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Self, final

from harness.corpora.catalogue import DATA_VARIABLE, SOURCES_VARIABLE, HubFile, catalogue, data_folder, entry, published
from harness.corpora.formats import Format, read
from harness.corpora.readings import reading_of
from harness.errors import DataError, Problem


@final
@dataclass(frozen=True, kw_only=True)
class Source:
    """One data file. ``parse`` decides between local file and Hub; the decision is part of the identity.

    Attributes:
        id: the name in ``sources.yaml``.
        file: path relative to ``HARNESS_DATA`` or to the Hub dataset.
        format: the file format.
        columns: column names of a table without a header.
        sha256: checksum of the file; None only for a Hub file, which is identified by its commit.
        repo: the Hub dataset; None for a local file.
        revision: the commit of the Hub dataset; None if no commit is known: the file then cannot be loaded.
        reading: version of the file's reader, see ``readings``; None is the first.
    """

    name: ClassVar[str] = "source"
    version: ClassVar[int] = 1

    id: str
    file: str
    format: Format
    columns: tuple[str, ...] = ()
    sha256: str | None = None
    repo: str | None = None
    revision: str | None = None
    reading: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Resolve a name of the catalogue: the local file if ``HARNESS_DATA`` contains it, otherwise the Hub.

        Raises:
            ConfigError: the name is unknown.
        """
        known, folder = entry(text), data_folder()
        local = folder / known.file.path if folder and known.file else None
        present = local is not None and local.is_file()
        origin = known.file if known.file and (present or known.hub is None) else known.hub
        assert origin is not None, "an entry has an origin"
        hub = origin if isinstance(origin, HubFile) else None
        sha256 = origin.sha256 or (_checksum_of(local) if local and present and not hub else None)
        return cls(
            id=text,
            file=origin.path,
            format=origin.format,
            columns=origin.columns,
            sha256=sha256,
            repo=hub.repo if hub else None,
            revision=hub.revision if hub else None,
            reading=reading_of(origin.format, local if present else None, published=sha256 in published()),
        )

    def records(self) -> list[dict[str, Any]]:
        """Return the verified rows in their published order.

        Raises:
            DataError: the file is missing, altered, gated, unreachable, or not in its stated format.
        """
        return read(self.path(), self.format, self.columns)

    def path(self) -> Path:
        """Return the path of the verified file; a Hub file that is not cached is downloaded.

        Raises:
            DataError: the file is missing, altered, gated or unreachable.
        """
        path = self._local() if self.repo is None else self._downloaded()
        self._verify(path)
        return path

    def fetch(self) -> Path:
        """Download the file in advance, so that jobs can run offline; raises the errors of ``path``."""
        return self.path()

    def at_hand(self) -> bool:
        """Return whether the file is on this machine and can be read without a network."""
        if self.repo is not None:
            return self._cached() is not None
        folder = data_folder()
        return folder is not None and (folder / self.file).is_file()

    def preflight(self) -> list[Problem]:
        """Return why the rows cannot be read, as far as can be determined without a network."""
        try:
            if self.repo is None:
                self._verify(self._local())
            elif cached := self._cached():
                self._verify(cached)
            else:
                return self._unreachable()
        except DataError as error:
            return [Problem("", str(error))]
        return []

    def _local(self) -> Path:
        folder = data_folder()
        if folder is None:
            raise DataError(
                f"`{self.id}`: {DATA_VARIABLE} is not set; expected the folder that holds {self.file}. {self._remedy()}"
            )
        if not (folder / self.file).is_file():
            raise DataError(f"`{self.id}`: {folder / self.file} does not exist; expected a data file. {self._remedy()}")
        return folder / self.file

    def _cached(self) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self._repo, self.file, revision=self._pin(), repo_type="dataset")
        return Path(found) if isinstance(found, str) else None

    def _unreachable(self) -> list[Problem]:
        from huggingface_hub import get_token
        from huggingface_hub.constants import is_offline_mode

        if is_offline_mode():
            reason = f"{self.file} of {self.repo} is not in the local Hub cache and HF_HUB_OFFLINE is set"
            return [Problem("", f"`{self.id}`: {reason}. {self._remedy()}")]
        known = catalogue().get(self.id)
        gated = known is not None and known.hub is not None and known.hub.gated
        return [Problem("", self._gated())] if gated and get_token() is None else []

    def _downloaded(self) -> Path:
        from huggingface_hub import errors, hf_hub_download

        try:
            return Path(hf_hub_download(self._repo, self.file, revision=self._pin(), repo_type="dataset"))
        except errors.GatedRepoError:
            reason = self._gated()
        except errors.LocalEntryNotFoundError:
            reason = (
                f"`{self.id}`: {self.file} of {self.repo} is not in the local Hub cache and the Hub cannot be reached. "
                f"{self._remedy()}"
            )
        except (errors.EntryNotFoundError, errors.RevisionNotFoundError):
            reason = (
                f"`{self.id}`: {self.repo} has no {self.file} at commit {self.revision}; expected the file that "
                f"`hub` names. {self._remedy()}"
            )
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            denied = status in (401, 403) or isinstance(error, errors.RepositoryNotFoundError)
            other = f"`{self.id}`: the Hub returned status {status} for {self.repo}. {self._remedy()}"
            reason = self._gated() if denied else other
        except (errors.HTTPError, OSError) as error:
            reason = (
                f"`{self.id}`: {self.file} of {self.repo} could not be downloaded: {type(error).__name__}. "
                f"{self._remedy()}"
            )
        # Raised outside the handlers, so that the library's exception, which may contain request headers, is not
        # chained.
        raise DataError(reason)

    @property
    def _repo(self) -> str:
        assert self.repo is not None
        return self.repo

    def _pin(self) -> str:
        if self.revision is None or not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            raise DataError(
                f"`{self.id}`: the Hub dataset {self.repo} has the revision {self.revision}; expected a commit of 40 "
                f"hex digits, so that the rows cannot change. Set `{self.id}.hub.revision` in the sources file that "
                f"{SOURCES_VARIABLE} points to, or put the file into {DATA_VARIABLE}, at its path in data/sources.yaml"
            )
        return self.revision

    def _verify(self, path: Path) -> None:
        if self.sha256 is None:
            return
        found = _checksum_of(path)
        if found != self.sha256:
            raise DataError(
                f"`{self.id}`: {path} has sha256 {found}; expected {self.sha256}. Replace it with the published file, "
                f"or set the checksum of yours for `{self.id}` in the sources file that {SOURCES_VARIABLE} points to"
            )

    def _gated(self) -> str:
        return (
            f"`{self.id}`: {self.repo} is gated on the Hub; expected a token of an account that accepted its "
            f"terms. Accept them at https://huggingface.co/datasets/{self.repo} and set HF_TOKEN or run "
            f"`hf auth login`. {self._remedy()}"
        )

    def _remedy(self) -> str:
        known = catalogue().get(self.id)
        local = known.file.path if known and known.file else self.file if self.repo is None else None
        ways = [f"put the file at {local} in {DATA_VARIABLE}"] if local else []
        ways += ["fetch it on a machine with a network by `harness doctor --fetch EXPERIMENT`"] if self.repo else []
        return f"To fix: {', or '.join(ways)}"


def sources_in(value: object) -> Iterator[Source]:
    """Yield every source in the fields of a settings object or a stage, including nested fields and parents."""
    if isinstance(value, Source):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from sources_in(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for item in fields(value):
            yield from sources_in(getattr(value, item.name))


def _checksum_of(path: Path) -> str:
    state = path.stat()
    return _checksum(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _checksum(path: Path, size: int, modified: int) -> str:
    del size, modified  # only part of the cache key, so that a changed file is read again
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; expected a data file that this user may read"
        ) from None
