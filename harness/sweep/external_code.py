"""External classes in a plan: whether their stored results are theirs, and of the code that they have now."""

from collections.abc import Callable, Iterable

from harness.engine.external import Described, external_classes, external_paths
from harness.engine.files import read_json
from harness.engine.layout import SPEC
from harness.engine.stage import Stage
from harness.engine.store import Store
from harness.errors import ConfigError, Problem, StoreError


def check_external_code(stages: Iterable[Stage], store: Store, note: Callable[[str], None]) -> None:
    """Check that stored results of external classes were computed by these classes; note which code has changed since.

    Args:
        stages: the stages of a plan.
        store: the store.
        note: receives a line about each class whose results were computed by other code.

    Raises:
        ConfigError: results were computed by another class of the same name and version.
    """
    problems: dict[Problem, None] = {}
    changed: dict[str, int] = {}
    for stage in stages:
        own = external_classes(stage)
        if not own or not store.has(stage):
            continue
        others = _stored_paths(stage, store)
        for mine, other in zip(sorted(own.keys() - others), sorted(others - own.keys()), strict=False):
            problems[Problem(mine, _CLASH.format(other=other))] = None
        for path, stored in _stored_classes(stage, store).items():
            if path in own and own[path]["code"] != stored["code"]:
                changed[path] = changed.get(path, 0) + 1
    if problems:
        raise ConfigError(list(problems))
    for path, number in changed.items():
        note(
            f"{path} has changed since stages that are used from the store were computed ({number}); "
            "raise its `version` to run them again."
        )


_CLASH = (
    "the store has results of `{other}` under this name and version, which would be taken for its own; "
    "give it another `name`, or raise its `version` if it is the same class in another place"
)


def _stored_paths(stage: Stage, store: Store) -> set[str]:
    try:
        return external_paths(read_json(store.folder(stage) / SPEC))
    except StoreError:
        return set()


def _stored_classes(stage: Stage, store: Store) -> dict[str, Described]:
    try:
        return dict(store.manifest(stage.key).provenance.get("classes", {}))
    except StoreError:
        return {}
