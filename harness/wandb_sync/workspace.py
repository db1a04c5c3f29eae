"""Saves a dashboard as a W&B workspace view and a W&B report. The only module that imports wandb_workspaces."""

from __future__ import annotations

import json
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any, NamedTuple

import wandb_workspaces.reports.v2 as reports
from wandb_workspaces import expr, workspaces

from harness.errors import TrackingError
from harness.wandb_sync.client import wrap_wandb_errors
from harness.wandb_sync.dashboard import Dashboard, Panel, Section
from harness.wandb_sync.names import LONGEST_TAG, truncated
from harness.wandb_sync.sweep_runs import CELL


class Saved(NamedTuple):
    """The saved workspace and report.

    Attributes:
        workspace: internal name of the view.
        report: id of the report.
        addresses: their URLs.
    """

    workspace: str
    report: str
    addresses: tuple[str, ...]


def specs(dashboard: Dashboard, *, entity: str, project: str) -> dict[str, Any]:
    """Return the requests for the workspace and the report, validated by W&B's models, without contacting a server.

    Raises:
        TrackingError: W&B's models reject them.
    """
    try:
        view = _workspace(dashboard, entity=entity, project=project)._to_model()
        # Without a project, because a run set with one queries the server for the project's id.
        report = _report(dashboard, entity=entity, project=project, runs_in=("", ""))._to_model()
    except ValueError as error:
        raise TrackingError(f"W&B's models reject the dashboard: {error}") from None
    return {
        "workspace": json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True)),
        "report": json.loads(report.spec.model_dump_json(by_alias=True, exclude_none=True)),
    }


def save(dashboard: Dashboard, *, entity: str, project: str, before: Saved | None) -> Saved:
    """Save a workspace and a report, replacing those that were saved before.

    Raises:
        TrackingError: the server is unreachable or rejects them.
    """
    view = _workspace(dashboard, entity=entity, project=project)
    report = _report(dashboard, entity=entity, project=project, runs_in=(entity, project))
    if before is not None:
        view._internal_name, report.id = before.workspace, before.report
    try:
        # Both print messages.
        with wrap_wandb_errors(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            view.save()
            report.save()
            return Saved(view._internal_name, report.id, (view.url, report.url))
    except ValueError as error:
        raise TrackingError(f"W&B returned an unexpected response: {error}") from None


def _workspace(dashboard: Dashboard, *, entity: str, project: str) -> workspaces.Workspace:
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=truncated(dashboard.title),
        sections=[
            workspaces.Section(
                name=section.title, panels=[_panel(panel, section.kind) for panel in section.panels], is_open=True
            )
            for section in dashboard.sections
        ],
        settings=workspaces.WorkspaceSettings(max_runs=100),
        runset_settings=workspaces.RunsetSettings(
            filters=expr.And(expr.Tags().isin([truncated(dashboard.sweep, LONGEST_TAG)])),
            pinned_columns=["run:displayName", *(_column(name) for name in dashboard.columns)],
        ),
    )


def _report(dashboard: Dashboard, *, entity: str, project: str, runs_in: tuple[str, str]) -> reports.Report:
    blocks: list[Any] = [reports.MarkdownBlock(text=dashboard.table)]
    for section in dashboard.sections:
        runs = _runs(dashboard, section, runs_in)
        panels = [_panel(panel, section.kind) for panel in section.panels]
        blocks += [
            reports.H2(text=section.title),
            reports.P(text=section.text),
            reports.PanelGrid(runsets=[runs], panels=panels),
        ]
    return reports.Report(
        entity=entity, project=project, title=truncated(dashboard.title), blocks=blocks, width="fluid"
    )


def _runs(dashboard: Dashboard, section: Section, runs_in: tuple[str, str]) -> reports.Runset:
    columns = [_column(name) for name in dashboard.columns]
    return reports.Runset(
        entity=runs_in[0],
        project=runs_in[1],
        name=section.kind,
        filters=expr.And(
            expr.Tags().isin([truncated(dashboard.sweep, LONGEST_TAG)]), expr.Config("kind") == section.kind
        ),
        **({"visible_columns": columns, "lock_columns": True} if section.kind == CELL else {}),
    )


def _panel(panel: Panel, kind: str) -> Any:
    named = [_metric(name) for name in panel.values]
    by = _metric(panel.by) if panel.by else None
    if panel.shape == "bars":
        return reports.BarPlot(
            title=panel.title, metrics=[name.name for name in named], groupby=by, groupby_aggfunc="mean",
            groupby_rangefunc="stderr", max_bars_to_show=100, orientation="v",
        )  # fmt: skip
    if panel.shape == "lines":
        return reports.LinePlot(
            title=f"{kind}: {panel.title}", x="Step", y=[name.name for name in named], groupby=by,
            groupby_aggfunc="mean", groupby_rangefunc="stddev", max_runs_to_show=100,
        )  # fmt: skip
    if panel.shape == "scatter":
        axes = dict(zip(("x", "y", "z"), named, strict=False))
        return reports.ScatterPlot(title=panel.title, running_ymin=panel.front or None, **axes)
    columns = [reports.ParallelCoordinatesPlotColumn(metric=name) for name in named]
    return reports.ParallelCoordinatesPlot(title=panel.title, columns=columns)


def _metric(name: str) -> Any:
    where, _, what = name.partition(":")
    kinds = {"config": reports.Config, "summary": reports.SummaryMetric, "curve": reports.Metric}
    return kinds[where](what)


def _column(name: str) -> str:
    where, _, what = name.partition(":")
    if where == "summary":
        return name
    head, _, rest = what.partition(".")
    return f"config:{head}.value{'.' + rest if rest else ''}"
