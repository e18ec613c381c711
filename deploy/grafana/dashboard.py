"""The Grafana dashboard, as JSON that deploy/grafana/provisioning loads:

    python deploy/grafana/dashboard.py > deploy/grafana/dashboards/tim4rec.json

Queries are written without the chosen instance and with `[]` for Grafana's `[$__rate_interval]`:
`query` puts in both. The learner is no instance.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import count
from string import ascii_uppercase

from grafana_foundation_sdk.builders import (
    common,
    heatmap,
    prometheus,
    stat,
    table,
    timeseries,
)
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_options
from grafana_foundation_sdk.models.dashboard import DynamicConfigValue as Property
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = models.DataSourceRef("prometheus", "tim4rec-prometheus")
Steps = Mapping[float | None, str]
"""Colours by the least value that has them; None: of values below all others."""
Query = tuple[str, str]
"""An expression and its legend."""


def query(expression: str, legend: str, place: int = 0) -> prometheus.Dataquery:
    def of_instance(metric: re.Match[str]) -> str:
        more = f",{metric[2]}" if metric[2] else ""
        return f'{metric[1]}{{instance=~"$instance"{more}}}'

    chosen = re.sub(r"\b(tim4rec_(?!learner_)\w+)(?:\{([^}]*)\})?", of_instance, expression)
    whole = chosen.replace("[]", "[$__rate_interval]")
    return prometheus.Dataquery().ref_id(ascii_uppercase[place]).expr(whole).legend_format(legend)


def thresholds(steps: Steps) -> builders.ThresholdsConfig:
    found = [models.Threshold(value, color) for value, color in steps.items()]
    return builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(found)


def color(name: str, mode: str = "fixed") -> Property:
    return Property("color", {"mode": mode, "fixedColor": name})


DASHED = Property("custom.lineStyle", {"fill": "dash", "dash": [10, 10]})
ALONE = [
    DASHED,
    Property("custom.fillOpacity", 0),
    Property("custom.stacking", {"mode": "none", "group": "A"}),
]


def number(title: str, unit: str, description: str, *queries: Query, steps: Steps) -> stat.Panel:
    """The newest value of each query."""
    several = len(queries) > 1
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .span(4)
        .height(4)
        .unit(unit)
        .color_scheme(builders.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .thresholds(thresholds(steps))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
        .orientation(options.VizOrientation.AUTO)
        .text_mode(
            options.BigValueTextMode.VALUE_AND_NAME if several else options.BigValueTextMode.VALUE
        )
        .color_mode(options.BigValueColorMode.VALUE)
        .graph_mode(options.BigValueGraphMode.NONE if several else options.BigValueGraphMode.AREA)
        .justify_mode(options.BigValueJustifyMode.AUTO)
    )
    for place, (expression, legend) in enumerate(queries):
        panel.with_target(query(expression, legend, place))
    return panel


def lines(
    title: str,
    unit: str,
    description: str,
    *queries: Query,
    colors: Mapping[str, str] | None = None,
    limit: tuple[str, str] | None = None,
    alarm: float | None = None,
    stacked: bool = False,
    width: int = 8,
) -> timeseries.Panel:
    """Values over time.

    Args:
        colors: by legend.
        limit: legend and colour of a dashed line that is not stacked.
        alarm: a value that is marked by a dashed line.
    """
    mode = options.StackingMode.NORMAL if stacked else options.StackingMode.NONE
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .span(width)
        .height(8)
        .unit(unit)
        .min(0)
        .color_scheme(builders.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC))
        .draw_style(options.GraphDrawStyle.LINE)
        .line_width(1)
        .fill_opacity(60 if stacked else 10)
        .show_points(options.VisibilityMode.NEVER)
        .span_nulls(False)
        .stacking(common.StackingConfig().mode(mode).group("A"))
        .legend(
            common.VizLegendOptions()
            .display_mode(options.LegendDisplayMode.LIST)
            .placement(options.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs([])
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(options.TooltipDisplayMode.MULTI)
            .sort(options.SortOrder.DESCENDING)
        )
    )
    if alarm is not None:
        dashed = common.GraphThresholdsStyleConfig().mode(options.GraphThresholdsStyleMode.DASHED)
        panel.thresholds(thresholds({None: "green", alarm: "red"})).thresholds_style(dashed)
    if limit is not None:
        panel.override_by_name(limit[0], [color(limit[1]), *ALONE])
    for legend, chosen in (colors or {}).items():
        panel.override_by_name(legend, [color(chosen)])
    for place, (expression, legend) in enumerate(queries):
        panel.with_target(query(expression, legend, place))
    return panel


def times_of_a_route() -> heatmap.Panel:
    """A histogram over time."""
    by_bucket = query(
        'sum by (le) (increase(tim4rec_request_duration_seconds_bucket{route="$route"}[]))',
        "{{le}}",
    )
    linear = common.ScaleDistributionConfig().type(options.ScaleDistribution.LINEAR)
    return (
        heatmap.Panel()
        .title("All times of $route")
        .description(
            "Every request of the chosen route: the brighter, the more took that long. Two bands "
            "mean two kinds of requests, for instance states in the pool and states that had to be "
            "rebuilt."
        )
        .datasource(SOURCE)
        .span(12)
        .height(8)
        .scale_distribution(linear)
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit("s").axis_placement(options.AxisPlacement.LEFT))
        .rows_frame(heatmap.RowsHeatmapOptions().layout(options.HeatmapCellLayout.AUTO))
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_options.HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .steps(64)
            .exponent(0.5)
            .scale(heatmap_options.HeatmapColorScale.EXPONENTIAL)
        )
        .cell_gap(1)
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .show_value(options.VisibilityMode.NEVER)
        .show_legend()
        .with_target(by_bucket.format(PromQueryFormat.HEATMAP))
    )


def what_is_served() -> table.Panel:
    """Model and software of each instance, a row each."""
    served = query(
        "tim4rec_model_info"
        " * on (job, instance) group_left (version, torch, device) tim4rec_build_info",
        "__auto",
    )
    columns = [
        "instance",
        "edition",
        "time_path",
        "items",
        "precision",
        "version",
        "torch",
        "device",
    ]
    arranged = {
        "excludeByName": dict.fromkeys(("Time", "Value", "job", "identity"), True),
        "indexByName": {column: place for place, column in enumerate(columns)},
        "renameByName": {
            "edition": "model", "time_path": "time path", "precision": "snapshots",
        },
    }  # fmt: skip
    return (
        table.Panel()
        .title("What is served")
        .description(
            "Model and software of each instance. Two models or versions at once: a roll-out is "
            "under way, or was left half done. Changes are also marked in all graphs."
        )
        .datasource(SOURCE)
        .span(8)
        .height(8)
        .align(options.FieldTextAlignment.LEFT)
        .show_header(True)
        .cell_height(options.TableCellHeight.SM)
        .with_transformation(models.DataTransformerConfig("organize", options=arranged))
        .with_target(served.format(PromQueryFormat.TABLE).instant())
    )


def per_judged(metric: str, label: str) -> str:
    """The mean over the interactions judged in an hour, by `label` and by what ranked them."""
    return (
        f"sum by ({label}, by) (increase(tim4rec_quality_{metric}_total[1h])) "
        f"/ on ({label}) group_left () "
        f"(sum by ({label}) (increase(tim4rec_quality_events_total[1h])) > 0)"
    )


Panel = stat.Panel | timeseries.Panel | heatmap.Panel | table.Panel
ROWS: Mapping[str, list[Panel]] = {
    "Overview": [
        number(
            "Workers",
            "none",
            "Workers of instances that are ready, and all that are alive. Less ready than alive"
            " for more than a minute: an instance keeps starting or draining.",
            ("sum(tim4rec_workers * on (job, instance) tim4rec_ready)", "ready"),
            ("sum(tim4rec_workers)", "alive"),
            steps={None: "red", 1: "green"},
        ),
        number(
            "Requests",
            "reqps",
            "Requests of users a second, without probes and scrapes. A sudden drop is as bad a "
            "sign as a rise: something before the service may be broken.",
            (
                "sum(rate(tim4rec_request_duration_seconds_count"
                '{route!~"/livez|/readyz|/metrics"}[]))',
                "requests",
            ),
            steps={None: "blue"},
        ),
        number(
            "Error share",
            "percentunit",
            "Share of requests answered by a 5xx over 5 minutes, of all instances. The "
            "objective is less than 0.1 % over 30 days.",
            ("tim4rec:request_errors:ratio_rate5m", "errors"),
            steps={None: "green", 0.001: "yellow", 0.0144: "red"},
        ).decimals(2),
        number(
            "p99 of /recommend",
            "s",
            "99 of 100 recommendations without explain are answered within this time, by all "
            "instances. Above 50 ms for 10 minutes pages somebody.",
            ('tim4rec:request_duration_seconds:p99_5m{route="/recommend"}', "p99"),
            steps={None: "green", 0.025: "yellow", 0.05: "red"},
        ),
        number(
            "Error budget left",
            "percentunit",
            "What is left of the 0.1 % of requests that may fail in 30 days, of all instances. "
            "Below zero the objective is missed: make no risky change. It knows as far back as "
            "Prometheus keeps its data.",
            ("1 - tim4rec:request_errors:ratio_rate30d / 0.001", "left"),
            steps={None: "red", 0: "orange", 0.25: "green"},
        ).decimals(1),
        number(
            "Alerts firing",
            "none",
            "Alerts that fire now, by severity: see Alerts in Prometheus, and docs/operate.md "
            "for what to do about each.",
            (
                'count(ALERTS{service="tim4rec",alertstate="firing",severity="page"}) or vector(0)',
                "page",
            ),
            (
                'count(ALERTS{service="tim4rec",alertstate="firing",severity="ticket"}) or '
                "vector(0)",
                "ticket",
            ),
            steps={None: "green", 1: "red"},
        ),
    ],
    "Requests": [
        lines(
            "Rate by route",
            "reqps",
            "Answered requests of users a second, by route. Compare with the errors beside it: "
            "a route whose rate falls while its errors rise is failing.",
            (
                "sum by (method, route) "
                '(rate(tim4rec_request_duration_seconds_count{route!~"/livez|/readyz|/metrics"}[]))',
                "{{method}} {{route}}",
            ),
            stacked=True,
        ),
        lines(
            "Errors by route and status",
            "reqps",
            "5xx (red) are ours and use up the error budget; 4xx (yellow) are the callers'. "
            "503: overload or no store; 500: a fault, with a log line; many 409 or 422: a "
            "caller sends wrong data.",
            (
                "sum by (route, status) "
                "(rate(tim4rec_request_duration_seconds_count"
                '{route!~"/livez|/readyz|/metrics",status=~"5.."}[]))',
                "{{status}} {{route}}",
            ),
            (
                "sum by (route, status) "
                "(rate(tim4rec_request_duration_seconds_count"
                '{route!~"/livez|/readyz|/metrics",status=~"4.."}[]))',
                "{{status}} {{route}}",
            ),
        )
        .override_by_regexp("/^5/", [color("red", "shades")])
        .override_by_regexp("/^4/", [color("yellow", "shades")]),
        lines(
            "Time of $route",
            "s",
            "How long requests of the chosen route take: half, 90 and 99 of 100 are answered "
            "within the line. Interpolated within a histogram's bucket, so do not compare finer"
            " than the buckets.",
            (
                "histogram_quantile(0.5, sum by (le) "
                '(rate(tim4rec_request_duration_seconds_bucket{route="$route"}[])))',
                "p50",
            ),
            (
                "histogram_quantile(0.9, sum by (le) "
                '(rate(tim4rec_request_duration_seconds_bucket{route="$route"}[])))',
                "p90",
            ),
            (
                "histogram_quantile(0.99, sum by (le) "
                '(rate(tim4rec_request_duration_seconds_bucket{route="$route"}[])))',
                "p99",
            ),
            colors={"p50": "green", "p90": "yellow", "p99": "red"},
        ),
        lines(
            "Where the time of $route goes",
            "s",
            "Mean seconds of a request in each stage, stacked; together they are the whole time"
            " (dashed). queue: waiting for a wave and for the arithmetic; log: the store; step,"
            " prefill: bringing the state up to date; retrieve: ranking; snapshot: packing; "
            "http: the rest. The stage that grew is where to look.",
            (
                'sum by (stage) (rate(tim4rec_stage_duration_seconds_sum{route="$route"}[])) / on '
                "() group_left () "
                'sum(rate(tim4rec_request_duration_seconds_count{route="$route"}[]))',
                "{{stage}}",
            ),
            (
                'sum(rate(tim4rec_request_duration_seconds_sum{route="$route"}[])) / '
                'sum(rate(tim4rec_request_duration_seconds_count{route="$route"}[]))',
                "whole request",
            ),
            colors={
                "queue": "orange",
                "log": "blue",
                "step": "green",
                "prefill": "dark-green",
                "snapshot": "purple",
                "retrieve": "yellow",
                "http": "#808080",
            },
            limit=("whole request", "text"),
            stacked=True,
            width=12,
        ),
        times_of_a_route(),
    ],
    "Waves and the pool": [
        lines(
            "Wave size",
            "short",
            "Requests answered together. It grows by itself with load; at max_batch (default "
            "128) for long, the service is at its limit.",
            (
                "sum(rate(tim4rec_wave_requests_sum[])) / sum(rate(tim4rec_wave_requests_count[]))",
                "mean",
            ),
            ("histogram_quantile(0.99, sum by (le) (rate(tim4rec_wave_requests_bucket[])))", "p99"),
            colors={"mean": "green", "p99": "red"},
            width=6,
        ),
        lines(
            "Queue",
            "short",
            "Requests waiting when a wave was taken, against what may wait. Near the dashed "
            "line the service refuses requests.",
            ("sum(tim4rec_queue_requests)", "waiting"),
            ("sum(tim4rec_queue_capacity_requests)", "capacity"),
            colors={"waiting": "blue"},
            limit=("capacity", "red"),
            width=6,
        ),
        lines(
            "Refused requests",
            "reqps",
            "Requests answered by 503 at once. queue_full: more load than the workers manage, "
            "add some; stopping: came while a worker was shutting down.",
            ("sum by (reason) (rate(tim4rec_refused_requests_total[]))", "{{reason}}"),
            colors={"queue_full": "red", "stopping": "orange"},
            width=6,
        ),
        lines(
            "Pool: hits and occupancy",
            "percentunit",
            "Hits: share of lookups that found the user's state on the device. Falling hits "
            "with a full pool: more users are active than fit, raise pool_capacity or add "
            "instances.",
            (
                'sum(rate(tim4rec_pool_lookups_total{result="hit"}[])) / '
                "sum(rate(tim4rec_pool_lookups_total[]))",
                "hits",
            ),
            ("sum(tim4rec_pool_users) / sum(tim4rec_pool_capacity_users)", "occupied"),
            colors={"hits": "green", "occupied": "blue"},
            width=6,
        ).max(1),
    ],
    "Store": [
        lines(
            "Round trip by operation",
            "s",
            "Time of one exchange with the store. Every request waits for `exchange`; if it "
            "grows, look at the store's CPU, its disk (appendfsync) and the network.",
            (
                "histogram_quantile(0.5, sum by (operation, le) "
                "(rate(tim4rec_store_duration_seconds_bucket[])))",
                "p50 {{operation}}",
            ),
            (
                "histogram_quantile(0.99, sum by (operation, le) "
                "(rate(tim4rec_store_duration_seconds_bucket[])))",
                "p99 {{operation}}",
            ),
            width=6,
        ),
        lines(
            "Errors, reachability",
            "short",
            "Round trips that failed, a second, and instances that do not reach the store. "
            "Failed exchanges are answered by 503: nothing acknowledged is lost, callers send "
            "again.",
            ("sum by (operation) (rate(tim4rec_store_errors_total[]))", "failed {{operation}}"),
            ("count(tim4rec_store_up) - sum(tim4rec_store_up)", "instances without store"),
            (
                "sum by (source) (rate(tim4rec_answers_without_store_total[]))",
                "answered without it, from {{source}}",
            ),
            ("sum(rate(tim4rec_replica_acks_missed_total[]))", "not on replicas in time"),
            width=6,
        )
        .override_by_regexp("/^failed/", [color("orange", "shades")])
        .override_by_name(
            "instances without store", [color("red"), Property("custom.fillOpacity", 40)]
        ),
        lines(
            "Memory",
            "bytes",
            "What the store uses, against its maxmemory where one is set. With noeviction a "
            "full store refuses every interaction.",
            ("max(tim4rec_store_memory_bytes)", "used"),
            ("max(tim4rec_store_memory_limit_bytes) > 0", "limit"),
            colors={"used": "blue"},
            limit=("limit", "red"),
            width=6,
        ),
        number(
            "Age of the last backup",
            "s",
            "Since the last whole `tim4rec backup` was begun: what is lost with the store at most.",
            ("time() - (max(tim4rec_backup_timestamp_seconds) > 0)", "age"),
            steps={None: "green", 36 * 3600: "red"},
        )
        .span(6)
        .height(8),
        lines(
            "Persistence, replicas",
            "short",
            "What the store failed to write the last time it tried: its append-only file, the "
            "rewrite of that, a whole copy. And its replicas: fewer, or one far behind, and a "
            "failover loses interactions.",
            ("max by (part) (tim4rec_store_persistence_failed)", "failed: {{part}}"),
            ("max(tim4rec_store_replicas)", "replicas"),
            ("max(tim4rec_store_replica_lag_bytes)", "furthest behind"),
            colors={"replicas": "green"},
            width=12,
        )
        .override_by_regexp("/^failed/", [color("red", "shades")])
        .override_by_name(
            "furthest behind",
            [
                Property("unit", "bytes"),
                Property("custom.axisPlacement", "right"),
                DASHED,
                color("text"),
            ],
        ),
        lines(
            "Disk of an embedded store",
            "bytes",
            "Room left where an embedded store keeps its log. A full disk refuses every "
            "interaction. The disk of a store of your own is not known to the service.",
            ("min by (instance) (tim4rec_store_disk_free_bytes)", "free {{instance}}"),
            ("max by (instance) (tim4rec_store_disk_bytes)", "size {{instance}}"),
            width=12,
        ),
    ],
    "States": [
        lines(
            "Rebuilds by source",
            "ops",
            "States made anew after a miss in the pool. Mostly `log` instead of `snapshot`: "
            "snapshots are missing, see the panel on the right. Many after a start are normal.",
            ("sum by (source) (rate(tim4rec_rebuilds_total[]))", "from {{source}}"),
            colors={"from snapshot": "green", "from log": "orange"},
            stacked=True,
        ),
        lines(
            "Interactions applied",
            "ops",
            "Interactions applied to states: by steps or, on a GPU after a miss or a batch, "
            "many in one pass (prefill). On a CPU all are steps.",
            ("sum by (by) (rate(tim4rec_applied_events_total[]))", "{{by}}"),
            colors={"step": "green", "prefill": "dark-green"},
            stacked=True,
        ),
        lines(
            "Snapshots",
            "ops",
            "Written snapshots a second, their bytes, and those lost. failed: the store refused"
            " them; unfit: too large for float16; unsound: a damaged one was read. Lost ones "
            "cost longer rebuilds, no data.",
            ("sum by (result) (rate(tim4rec_snapshots_total[]))", "{{result}}"),
            ("sum(rate(tim4rec_snapshot_bytes_total[]))", "bytes"),
            colors={"written": "green", "failed": "red", "unfit": "orange", "unsound": "dark-red"},
        ).override_by_name(
            "bytes",
            [
                Property("unit", "Bps"),
                Property("custom.axisPlacement", "right"),
                DASHED,
                color("text"),
            ],
        ),
    ],
    "Interactions and recommendations": [
        lines(
            "Interactions by verdict",
            "ops",
            "What became of interactions received. late: older than the user's newest, stored "
            "at its time; duplicate: sent again, counted once; conflict, rejected, future: "
            "refused, a caller sends wrong data.",
            ("sum by (verdict) (rate(tim4rec_events_total[]))", "{{verdict}}"),
            colors={
                "applied": "green",
                "duplicate": "blue",
                "late": "yellow",
                "conflict": "red",
                "rejected": "dark-red",
                "future": "orange",
            },
            stacked=True,
        ),
        lines(
            "Recommendations by source",
            "reqps",
            "From the model, or without it and why: unknown_user was never logged; "
            "no_known_item: the model knows none of the user's items. A jump of the latter "
            "after a roll-out: the wrong model.",
            ('sum by (source) (rate(tim4rec_recommendations_total{source="model"}[]))', "model"),
            ("sum by (reason) (rate(tim4rec_fallbacks_total[]))", "without: {{reason}}"),
            ("sum by (by) (rate(tim4rec_retrievals_total[]))", "model, found by: {{by}}"),
            colors={
                "model": "green",
                "without: unknown_user": "blue",
                "without: no_known_item": "orange",
            },
            stacked=True,
        ),
        lines(
            "Catalogue",
            "short",
            "Items with a record, those the model does not know yet, those that may not be "
            "returned now; and how many records a second the workers take over. Many changes "
            "without end: something writes the same items again and again.",
            ("max by (kind) (tim4rec_catalogue_items)", "{{kind}}"),
            ("sum(rate(tim4rec_catalogue_changes_total[]))", "changes a second"),
        ),
        lines(
            "Popularity not kept",
            "short",
            "Failures to write or read the counts of popular items: those counts are lost, and "
            "what is popular of late grows old.",
            ("sum(rate(tim4rec_popularity_failures_total[]))", "failures a second"),
        ),
        lines(
            "Interactions by kind",
            "ops",
            "New interactions by their kind (TIM4REC_KINDS): those with a rule, `other` ones, "
            "and those sent without a kind (none).",
            ("sum by (kind) (rate(tim4rec_kinds_total[]))", "{{kind}}"),
        ),
    ],
    "Models": [
        lines(
            "Recommendations by model",
            "ops",
            "Answers by the model that the user has, popular items included. Several "
            "lines: trials, whose shares of the users these should be.",
            ("sum by (model) (rate(tim4rec_model_recommendations_total[]))", "{{model}}"),
            stacked=True,
            width=6,
        ),
        lines(
            "States by model",
            "short",
            "States in the pools. After a change, moved: users in memory at that moment who "
            "have a state of their new model; waiting: those who were not asked for since.",
            ("sum by (model) (tim4rec_model_users)", "{{model}}"),
            ("sum by (state) (tim4rec_moved_users)", "{{state}}"),
            width=6,
        ),
        lines(
            "Rebuilds by model",
            "ops",
            "States made of a snapshot or the log. A burst after a change is the users moving; "
            "`tim4rec warm` makes each one cheap.",
            ("sum by (model) (rate(tim4rec_model_rebuilds_total[]))", "{{model}}"),
            stacked=True,
            width=6,
        ),
        lines(
            "Changes of the models",
            "short",
            "Times that a worker took over what was set, or could not; behind: 1 as long as a "
            "worker serves something else than is set. Trials that ended by themselves.",
            ("sum by (result) (increase(tim4rec_model_changes_total[]))", "{{result}}"),
            ("max(tim4rec_model_behind)", "behind"),
            (
                "sum by (decision) (increase(tim4rec_trial_decisions_total[]))",
                "trial {{decision}}",
            ),
            width=6,
        ),
        lines(
            "What is shown and taken to",
            "ops",
            "Items in the answers of each model, and interactions with one of them within "
            "outcome_window_s after. Zero as long as that is off. Explored: items shown to be "
            "known better, beside a model's (explore_share).",
            ("sum by (model) (rate(tim4rec_shown_items_total[]))", "shown {{model}}"),
            ("sum by (model) (rate(tim4rec_outcomes_total[]))", "taken {{model}}"),
            ("sum(rate(tim4rec_explored_items_total[]))", "explored"),
            ("sum(rate(tim4rec_explored_outcomes_total[]))", "taken of these"),
            ("sum(rate(tim4rec_outcome_failures_total[]))", "not counted"),
            width=12,
        ),
        lines(
            "Share of shown items taken to",
            "percentunit",
            "Of the items that a model has shown, those that the user interacted with within "
            "outcome_window_s, over the last hour. Whether a difference means something, GET "
            "/admin/model says.",
            (
                "sum by (model) (increase(tim4rec_outcomes_total[1h])) / (sum by (model) "
                "(increase(tim4rec_shown_items_total[1h])) > 0)",
                "{{model}}",
            ),
            width=12,
        ),
    ],
    "Learning": [
        lines(
            "Age of what was learned",
            "s",
            "Time since the newest interaction that each served model was trained on; the same of "
            "the model for everybody, and since a model was published, as the learner says. Three "
            "days with a learner are a ticket.",
            (
                "time() - max by (edition) (tim4rec_model_until_timestamp_seconds "
                "and on (job, instance, edition) (tim4rec_model_info == 1))",
                "{{edition}}",
            ),
            ("time() - max(tim4rec_learner_model_until_timestamp_seconds > 0)", "everybody's"),
            ("time() - max(tim4rec_learner_published_timestamp_seconds > 0)", "published"),
        ),
        lines(
            "Items the model does not know",
            "percentunit",
            "Share of logged interactions whose item the model has never seen: they change no "
            "recommendation. Rising: the model is out of date, or a caller sends other ids.",
            (
                "sum(rate(tim4rec_unknown_items_total[])) / "
                'sum(rate(tim4rec_events_total{verdict=~"applied|late"}[]))',
                "unknown",
            ),
            colors={"unknown": "orange"},
        ),
        lines(
            "New interactions",
            "short",
            "What the learner found in the log that is newer than what everybody's model was "
            "trained on, when it last looked. Growing without end: no new model comes of them.",
            ("max(tim4rec_learner_new_events)", "new"),
        ),
        lines(
            "Last verdict",
            "short",
            "The judge's last verdict is 1. better and not worse are published; undecided for "
            "long: too few new interactions, or too small a share of them for the judgement.",
            ("max by (verdict) (tim4rec_learner_verdict)", "{{verdict}}"),
            colors={"better": "green", "not worse": "blue", "worse": "red"},
            width=6,
        ),
        number(
            "Candidate less incumbent",
            "short",
            "The judge's figures of the last candidate less those of the incumbent, on "
            "interactions that neither was trained on, by metric. The journal has its interval.",
            ("max by (metric) (tim4rec_learner_difference)", "{{metric}}"),
            steps={None: "red", 0: "green"},
        )
        .text_mode(options.BigValueTextMode.VALUE_AND_NAME)
        .span(6)
        .height(8)
        .decimals(4),
        lines(
            "Time of each part",
            "s",
            "How long each part of a round took last. One that grows with the log: take a longer "
            "--warm-every, or a machine of its own for the learner.",
            ("max by (part) (tim4rec_learner_part_seconds)", "{{part}}"),
            width=6,
        ),
        lines(
            "Rounds and failures of a day",
            "short",
            "How rounds of the last 24 hours ended, and failures by part, each of which is tried "
            "again. Three of a part in six hours are a ticket.",
            ("sum by (outcome) (increase(tim4rec_learner_rounds_total[1d]))", "{{outcome}}"),
            ("sum by (part) (increase(tim4rec_learner_failures_total[1d]))", "failed: {{part}}"),
            width=6,
        ).override_by_regexp("/^failed/", [color("red", "shades")]),
    ],
    "Quality": [
        lines(
            "NDCG@10",
            "short",
            "How far up the items that users took to stood in what they would have been given just "
            "before (served), and in what is popular (popularity), over the last hour: 1 is always "
            "first, 0 never among ten. Served below popularity: the model is worse than none.",
            (per_judged("ndcg", "model"), "{{by}} {{model}}"),
        ),
        lines(
            "HR@10",
            "percentunit",
            "The share of interactions judged whose item was among the ten that the user would "
            "have been given just before (served), and among the ten most popular (popularity).",
            (per_judged("hits", "model"), "{{by}} {{model}}"),
        ),
        lines(
            "MRR@10",
            "short",
            "The mean of 1 / rank of the items that users took to, 0 where they were not among the "
            "ten: as NDCG@10, with more weight on the first places.",
            (per_judged("reciprocal_ranks", "model"), "{{by}} {{model}}"),
        ),
        lines(
            "NDCG@10 by item",
            "short",
            "Of items that the model knows, and of those that came after its training. If only new "
            "ones are low, train a new model or give the items categories or similar ones.",
            (per_judged("ndcg", "item"), "{{by}}, {{item}} items"),
            width=12,
        ),
        lines(
            "Interactions judged",
            "cpm",
            "How many a minute the figures beside rest on, by model and by whether it knows the "
            "item. A thousand give NDCG@10 to about a tenth; quality_sample makes more of them.",
            (
                "60 * sum by (model, item) (rate(tim4rec_quality_events_total[]))",
                "{{item}} {{model}}",
            ),
            ("60 * sum(rate(tim4rec_quality_failures_total[]))", "not judged"),
            colors={"not judged": "red"},
            width=12,
        ),
    ],
    "Live layer": [
        lines(
            "Events counted",
            "cpm",
            "Interactions of everybody that each process counted, a minute: all the same. One that "
            "counts none answers by old evidence.",
            (
                "60 * sum by (instance) (rate(tim4rec_live_events_total[]))",
                "{{instance}}",
            ),
        ),
        lines(
            "Behind",
            "s",
            "How old the newest interaction was when it was counted. About half a second; more: "
            "the store or the process is slow.",
            ("max by (instance) (tim4rec_live_lag_seconds)", "{{instance}}"),
        ),
        lines(
            "Items counted",
            "short",
            "Items that had an interaction. At the most that are counted (500,000), newer ones are "
            "not: make the evidence anew.",
            ("max by (instance) (tim4rec_live_items)", "{{instance}}"),
        ),
        lines(
            "Trouble of the feed",
            "cpm",
            "not written or read: the store was away. lost: the feed was cut before a process had "
            "read it; tim4rec live rebuild makes the evidence anew. taken over: a checkpoint, at a "
            "start or after a rebuild.",
            ("60 * sum(rate(tim4rec_live_failures_total[]))", "not written or read"),
            ("60 * sum(rate(tim4rec_live_gaps_total[]))", "lost"),
            ("60 * sum(rate(tim4rec_live_reloads_total[]))", "taken over"),
            colors={"not written or read": "orange", "lost": "red"},
            width=12,
        ),
    ],
    "Exactness": [
        lines(
            "Largest difference",
            "sci",
            "Largest difference of a score between states in memory and their recomputation "
            "from the log, over the latest samples. Rounding gives about 1e-6; above the dashed"
            " line (0.001) states are wrong, and somebody is paged.",
            ("max by (instance) (tim4rec_exactness_difference)", "{{instance}}"),
            alarm=0.001,
            width=12,
        ).scale_distribution(
            common.ScaleDistributionConfig()
            .type(options.ScaleDistribution.SYMLOG)
            .log(10)
            .linear_threshold(1e-8)
        ),
        lines(
            "Samples by result",
            "cpm",
            "States compared with their recomputation, a minute. different must be zero. "
            "skipped: too long a history, or it changed meanwhile; if all are skipped, nobody "
            "watches.",
            ("60 * sum by (result) (rate(tim4rec_exactness_samples_total[]))", "{{result}}"),
            colors={"equal": "green", "different": "red", "skipped": "#808080"},
            width=12,
        ),
    ],
    "Processes": [
        lines(
            "Memory",
            "bytes",
            "Of all processes of an instance. It rises until the pool has been touched once, "
            "then it is level; resident memory that keeps growing is a leak.",
            ("sum by (instance) (tim4rec_resident_memory_bytes)", "resident {{instance}}"),
            ("sum by (instance) (tim4rec_device_memory_bytes)", "GPU {{instance}}"),
            ("sum by (instance) (tim4rec_pool_bytes)", "pool {{instance}}"),
        ),
        lines(
            "CPU",
            "short",
            "Cores that the processes keep busy. A worker uses one, and some more for requests;"
            " level at its number of workers, an instance is at its limit.",
            ("sum by (instance) (rate(tim4rec_cpu_seconds_total[]))", "{{instance}}"),
        ).decimals(2),
        lines(
            "Event loop lag",
            "s",
            "How late a timer fired last, in the worst worker. Above 0.1 s (dashed) every "
            "request waits that long for nothing: too little CPU, or something blocks.",
            ("max by (instance) (tim4rec_event_loop_lag_seconds)", "{{instance}}"),
            alarm=0.1,
        ),
        lines(
            "Workers",
            "short",
            "Alive, and how many were replaced since the instance started. A step up is a "
            "worker that died: its last log lines say why, or the kernel killed it for memory.",
            ("sum(tim4rec_workers)", "alive"),
            ('sum(tim4rec:replaced_workers{instance=~"$instance"})', "replaced"),
            colors={"alive": "green", "replaced": "red"},
        ),
        lines(
            "Open files",
            "short",
            "Files and connections of all processes of an instance. Compare with `ulimit -n`; "
            "growth without more clients is a leak of connections.",
            ("sum by (instance) (tim4rec_open_files)", "{{instance}}"),
        ),
        what_is_served(),
    ],
}


class Annotation(models.AnnotationQuery, Builder[models.AnnotationQuery]):
    """A change of a label's value, marked in all graphs.

    Grafana's types leave what is Prometheus' own of an annotation to it.
    """

    def __init__(self, name: str, color: str, metric: str, label: str) -> None:
        now, before = metric, f"{metric} offset 1m"
        expression = f"count by ({label}) ({now}) unless count by ({label}) ({before})"
        super().__init__(name=name, datasource=SOURCE, icon_color=color, expr=expression)
        self._text = f"{{{{{label}}}}}"

    def to_json(self) -> dict[str, object]:
        own = {"step": "15s", "titleFormat": self.name, "textFormat": self._text}
        return super().to_json() | own

    def build(self) -> models.AnnotationQuery:  # as the dashboard's builder takes it
        return self


def variable(name: str, label: str, values: str) -> builders.QueryVariable:
    return (
        builders.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query({"query": values, "refId": name})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .hide(models.VariableHide.DONT_HIDE)
    )


def dashboard() -> models.Dashboard:
    found = (
        builders.Dashboard("TiM4Rec")
        .uid("tim4rec")
        .description(
            "The recommendation service: requests, waves, store, states, models, learning, "
            "exactness, processes."
        )
        .tags(["tim4rec"])
        .editable()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .refresh("10s")
        .time("now-30m", "now")
        .annotation(Annotation("New model", "purple", "tim4rec_model_info", "edition"))
        .annotation(Annotation("New version", "blue", "tim4rec_build_info", "version"))
        .with_variable(
            variable("instance", "Instance", "label_values(tim4rec_workers, instance)")
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(models.VariableOption(text=["All"], value=["$__all"], selected=True))
        )
        .with_variable(
            variable(
                "route",
                "Route",
                "label_values(tim4rec_request_duration_seconds_count"
                '{route!~"/livez|/readyz|/metrics"}, route)',
            ).current(models.VariableOption(text="/recommend", value="/recommend", selected=True))
        )
    )
    ids = count(1)
    for title, panels in ROWS.items():
        found.with_row(builders.Row(title).id(next(ids)))
        for panel in panels:
            found.with_panel(panel.id(next(ids)))
    return found.build()


if __name__ == "__main__":
    print(json.dumps(dashboard(), cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False))
