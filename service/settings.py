"""Every setting of the service: name, type, default, meaning and group.

A setting NAME comes from the environment variable TIM4REC_NAME, or from a flag of `tim4rec serve`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from model.kernels import KernelChoice
from model.kinds import HEAVIEST, KindRules
from model.state import Precision
from model.trained_kinds import agreed_kinds
from service import addresses
from service.engine.requests import StoreAway
from service.observe import logs
from service.setting_types import (
    Artefact,
    Host,
    Hosts,
    KeysFile,
    Kinds,
    Models,
    Origins,
    Proxies,
    RedisUrl,
    Retrieval,
    Secrets,
    Tracing,
)
from service.store.event_log import LatePolicy
from service.store.url import StoreUrl

PREFIX = "TIM4REC_"
SHARED = (
    "kinds", "late_policy", "replay_limit", "dedup_window", "idle_ttl_s", "history_limit",
    "popular_half_life_s", "popular_items", "live_neighbours", "live_users",
)  # fmt: skip
"""What `Settings.shared` tells."""


def _group(name: str) -> Any:
    return partial(Field, json_schema_extra={"group": name})


_model, _http, _store, _engine, _log, _limit, _access, _popular, _live, _watch = (
    _group(name)
    for name in (
        "Model", "Process", "Store", "States", "Interactions", "API", "Access", "Popularity",
        "Live evidence", "Observation",
    )
)  # fmt: skip


class Settings(BaseSettings):
    """Settings of one service; the text below each field is its documentation everywhere."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    artefact: Artefact = _model()
    """folder of the model to serve; or its URL in an object store, from which it is fetched"""
    device: str = _model("auto")
    """`cpu`, `cuda`, `cuda:1`; auto: a GPU if there is one"""
    kernels: KernelChoice = _model("auto")
    """what computes steps and scans: `triton` is mamba-ssm's kernels, of the extra `gpu`;
    `reference` plain torch; auto: triton on a GPU where it runs"""
    threads: int = _model(1, ge=1)
    """threads of the arithmetic in one process"""
    retrieval: Retrieval = _model("auto")
    """how items are found: `exact`, or by an `index`, which needs the extra `index`; auto: by an
    index from 100,000 items on, on a CPU, where it is installed"""

    models_dir: Models = _model(None)
    """folder of artefacts, a folder each, that `POST /admin/model` may choose from; or the URL of
    such a place in an object store, `s3://BUCKET/PREFIX`; none: only `artefact` is served"""
    model_poll_s: float = _model(1, gt=0)
    """how often a process asks which models are to be served"""
    max_trials: int = _model(2, ge=1)
    """most models on trial at once, each with a pool of its own in every process"""
    trial_observed_s: int = _model(86_400, ge=1)
    """how long a user is observed from the first recommendation of a trial on: what the user takes
    in that time counts for the trial"""
    trial_least_users: int = _model(1000, ge=1)
    """so many users must have been observed on either side before a trial decides"""
    trial_longest_s: int = _model(14 * 86_400, ge=1)
    """a trial that decides does so at the latest after so long"""
    trial_margin: float = _model(0.01, ge=0, le=1)
    """a trial whose time is over is promoted if the part of its users who take something is not
    less than that of the others by more than this, and taken back if that is not certain"""
    explore_share: float = _model(0, ge=0, le=0.5)
    """share of the places of an answer, on average, for items of which little is known: newer than
    the model or rare in its training, and not shown often yet; needs outcome_window_s"""

    host: Host = _http("127.0.0.1")
    """address or name to listen on; `0.0.0.0`: all of IPv4; `::`: all of IPv6 and IPv4"""
    port: int = _http(8000, ge=1, le=65535)
    """port to listen on"""
    operations_port: int | None = _http(None, ge=1, le=65535)
    """another port for `/metrics`, `/livez` and `/readyz`, on which nothing else is; `/metrics` is
    then there only. None: all are on `port`"""
    workers: int = _http(1, ge=1)
    """processes"""
    drain_s: float = _http(0, ge=0)
    """after SIGTERM, how long to go on serving while `/readyz` answers 503, so that load balancers
    turn away first"""
    shutdown_s: int = _http(10, ge=1)
    """most time to finish what is under way, once the port is closed"""
    read_timeout_s: float = _http(30, gt=0)
    """within which a request's head must have arrived, and then its body"""
    keep_alive_s: int = _http(75, ge=1)
    """a connection without a request is closed after this time. To be longer than clients and
    proxies keep theirs (60 s is usual): what is sent while it is being closed gets no answer"""
    root_path: str = _http("", pattern=rf"^{addresses.PREFIX}$")
    """path under which a proxy shows the service, such as `/recommender`; the proxy may take it off
    or leave it on"""
    trusted_proxies: Proxies = _http(("127.0.0.1", "::1"))
    """comma-separated addresses and networks of proxies whose X-Forwarded-For, -Proto and -Prefix
    are believed; `*`: all"""
    page: bool = _http(True)
    """the page at `/`, where people try the recommender in a browser"""

    redis_url: RedisUrl = _store(None)
    """redis://, rediss:// or unix:// URL of a server, or of nodes of a Cluster, their hosts
    separated by commas; none: an embedded store in data_dir"""
    data_dir: Path = _store(Path("state"))
    """folder of the embedded store, of the index of items, and of models that were fetched"""
    fsync: Literal["always", "everysec"] = _store("always")
    """when the embedded store writes its log to disk"""
    namespace: str = _store("tim4rec", pattern=r"^[A-Za-z0-9_.-]+$")
    """prefix of keys"""
    store_timeout_s: float = _store(2.0, gt=0)
    """time for the store to answer a batch, retries included"""
    replica_acks: int = _store(0, ge=0)
    """replicas that must have an interaction or an erasure before it is acknowledged; where they
    don't in time, the answer is a 503: it may be stored, and is to be sent again with the same
    event_id"""
    change_shared_settings: bool = _store(False)
    """what becomes of a start with another value of a setting that all processes of a store and
    namespace share (marked `shared`) than is noted there: `false`: it ends with a line that names
    both; `true`: the new value is noted for all"""
    store_away: StoreAway = _store("popular")
    """what reads get while the store does not answer: `refuse`: a 503; `pool`: what the state in
    memory says, marked `stale`, and a 503 for users without one; `popular`: what is popular for
    those"""

    pool_capacity: int | None = _engine(None, ge=1)
    """user states kept on the device; none: 16,384, on a GPU what fits into 90 % of its free
    memory, or 45 % with models_dir"""
    max_batch: int = _engine(128, ge=1)
    """most requests in one batch"""
    max_queue: int = _engine(4096, ge=1)
    """most requests waiting; more get a 503"""
    max_wait_s: float = _engine(1.0, gt=0)
    """requests that would wait longer for their turn, as things go, get a 503 at once"""
    snapshot_every: int = _engine(64, ge=1)
    """events between two snapshots of a user"""
    snapshot_ttl_s: int = _engine(30 * 86_400, ge=1)
    """life of a snapshot"""
    snapshot_precision: Precision = _engine("float32")
    """float16 halves a snapshot, and rounds the state at each"""

    kinds: Kinds = _log("")
    """(shared) what interactions do by kind, as `view:step,skip:hide,*:count`: `step` moves the
    state, `count` only counts as popular, `hide` (also `step+hide`) keeps the item from the user,
    `log` does nothing; `*`: kinds without a rule, which step by default. None: the rules that the
    artefact was trained by; others than those are refused"""
    late_policy: LatePolicy = _log("clamp")
    """(shared) what becomes of an event older than the user's newest: it counts as of the newest's
    time, is refused, or is put in its place and what follows computed anew"""
    replay_limit: int = _log(200, ge=1)
    """(shared) with late_policy replay, most newer events of the user that a late one may have, at
    most half of dedup_window; an older one is refused"""
    future_tolerance_s: float = _log(300, ge=0)
    """how far ahead of the store's clock an event may be"""
    dedup_window: int = _log(1000, ge=2)
    """(shared) newest events of a user known by event_id"""
    idle_ttl_s: int = _log(0, ge=0)
    """(shared) forget users idle for so long; 0: never"""
    history_limit: int = _log(0, ge=0)
    """(shared) newest events kept of a user, at least dedup_window and snapshot_every; 0: all. A
    state rebuilt from a record that has lost some is not exact, and answers say so"""
    erasure_poll_s: float = _log(0.25, gt=0)
    """how often a process asks which users were erased elsewhere"""

    catalogue_poll_s: float = _log(0.25, gt=0)
    """how often a process asks which items were changed elsewhere"""

    max_k: int = _limit(1000, ge=1)
    """most items one recommendation may ask for"""
    max_candidates: int = _limit(5000, ge=1)
    """most items one `POST /rank` may order"""
    max_session_events: int = _limit(200, ge=1)
    """most interactions of one `POST /recommend/session`"""
    explain_k: int = _limit(20, ge=1)
    """most items that one answer explains"""
    explain_events: int = _limit(50, ge=1)
    """newest interactions of a user among which an explanation looks for reasons; each takes a pass
    of the model"""
    max_body_bytes: int = _limit(4 * 2**20, ge=1024)
    """most bytes of a request's body"""
    max_buffered_bytes: int = _limit(256 * 2**20, ge=2**20)
    """most bytes of bodies that one process keeps at a time; a body beyond it gets a 503"""
    max_head_bytes: int = _limit(65_536, ge=1024)
    """most bytes of a request's line and headers, and of the fields behind a chunked body"""
    max_header_fields: int = _limit(100, ge=10)
    """most header fields of either"""
    max_batch_events: int = _limit(1000, ge=1)
    """most events of one batch request"""
    max_weight: float = _limit(10, gt=0, le=HEAVIEST)
    """most that one interaction may weigh; a heavier one is refused, and one that is stored already
    counts for so much"""
    max_batch_items: int = _limit(1000, ge=1)
    """most items of one batch request"""
    max_item_bytes: int = _limit(16_384, ge=256)
    """most bytes of an item's record"""
    max_filter_length: int = _limit(2000, ge=1)
    """most characters of a filter"""
    max_paged: int = _limit(1000, ge=1)
    """most items that the pages of one recommendation hold together"""

    api_keys: Secrets = _access(())
    """comma-separated keys, one of which X-API-Key must carry; none, and no file of them: open,
    where that is allowed (allow_open)"""
    api_keys_file: KeysFile = _access(None)
    """more of them, one a line (`#` begins a comment); read again when it changes"""
    allowed_hosts: Hosts = _access(())
    """comma-separated names, beside addresses and `localhost`, by which requests may ask for a
    service without keys; `*`: any. So no page of somebody else's can make a browser ask by a name
    that leads here"""
    allow_open: bool = _access(False)
    """serve without keys on an address that other machines reach; without this, `tim4rec serve`
    refuses to"""
    public_docs: bool = _access(False)
    """`/docs` and `/openapi.json` without a key, also where the API wants one"""
    admin_keys: Secrets = _access(())
    """comma-separated keys, one of which X-API-Key must carry at `/admin` and to list all users;
    none, and no file of them: closed"""
    admin_keys_file: KeysFile = _access(None)
    """more of them, as in api_keys_file"""
    cors_origins: Origins = _access(())
    """comma-separated origins, such as `https://shop.example`, whose pages may ask from a browser
    and read the answers (CORS); `*`: any, which a service with keys refuses; none: no other page"""

    popular_half_life_s: int = _popular(7 * 86_400, ge=60)
    """(shared) after so long an interaction counts half in what is recent"""
    popular_least: float = _popular(100, ge=0)
    """so many recent interactions, aged ones counted in part, are enough to go by; with fewer, what
    is popular is what was in training"""
    popular_items: int = _popular(100_000, ge=1000)
    """(shared) items counted; of those beyond, the rarest are forgotten"""
    popular_refresh_s: float = _popular(5, gt=0)
    """how often a process reads what all have counted"""

    live: bool = _live(True)
    """what all users did since the training counts beside the model's score; `false`: nothing of
    it is read, kept or scored"""
    live_neighbours: int = _live(64, ge=1)
    """(shared) most items whose connection with an item is kept; memory grows with it"""
    live_users: int = _live(200_000, ge=1)
    """(shared) users whose last items are kept to be counted with their next one; of those beyond,
    who have been away longest are left out"""
    live_new_items: bool = _live(True)
    """whether items may be recommended that have interactions and are neither in the model nor in
    the catalogue"""
    live_feed_events: int = _live(200_000, ge=1000)
    """events that wait in the store, a day at most, for processes to count them"""
    live_checkpoint_s: float = _live(300, gt=0)
    """how often what is counted is written to the store, from which processes start"""

    log_level: logs.Level = _watch("info")
    """what is logged, at least; to standard error"""
    log_format: logs.Format = _watch("auto")
    """auto: text on a terminal, else a JSON object a line"""
    log_requests: Literal["errors", "all", "none"] = _watch("errors")
    """a line for every answer with a 5xx status but to probes, for all, or for none"""
    tracing: Tracing = _watch(False)
    """OpenTelemetry traces, sent as the OTEL_* variables say; needs the extra `otel`"""
    outcome_window_s: int = _watch(0, ge=0)
    """how soon after an item was recommended to a user an interaction with it counts as an outcome
    of the model; 0: neither is counted"""
    quality_sample: float = _watch(0.05, ge=0, le=1)
    """share of interactions whose item is looked for in what the user would have been recommended
    just before: HR@10, NDCG@10 and MRR@10 as metrics; 0: none"""
    exactness_every_s: float = _watch(10, ge=0)
    """how often each process recomputes a resident user; 0: never"""
    exactness_max_events: int = _watch(2000, ge=1)
    """users with more events are not recomputed"""
    exactness_tolerance: float = _watch(1e-3, gt=0)
    """a larger difference of scores is logged as an error; with float16, ten times that"""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.operations_port == self.port:
            raise ValueError(f"operations_port {self.port} is that of the API: give another one")
        if "*" in self.cors_origins and self.has_keys:
            raise ValueError(
                "cors_origins: `*` together with keys would let any page use one that it got hold "
                "of: name the origins"
            )
        if self.explore_share and not self.outcome_window_s:
            raise ValueError(
                f"explore_share {self.explore_share} needs to know what users take of what they "
                "are shown: set outcome_window_s, such as 3600"
            )
        if self.max_buffered_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_buffered_bytes {self.max_buffered_bytes} must be at least max_body_bytes "
                f"{self.max_body_bytes}: raise the one or lower the other"
            )
        if self.pool_capacity is not None and self.pool_capacity < 4 * self.max_batch:
            raise ValueError(
                f"pool_capacity {self.pool_capacity} must be at least 4 x max_batch "
                f"{self.max_batch}: raise the one or lower the other"
            )
        if 0 < self.history_limit < max(self.dedup_window, self.snapshot_every):
            raise ValueError(
                f"history_limit {self.history_limit} must be 0 or at least dedup_window "
                f"{self.dedup_window} and snapshot_every {self.snapshot_every}: raise it or lower "
                "them"
            )
        if self.late_policy == "replay" and 2 * self.replay_limit > self.dedup_window:
            raise ValueError(
                f"replay_limit {self.replay_limit} must be at most half of dedup_window "
                f"{self.dedup_window}: lower the one or raise the other"
            )
        return self

    @property
    def has_keys(self) -> bool:
        given = self.api_keys, self.api_keys_file, self.admin_keys, self.admin_keys_file
        return any(given)

    @property
    def open_to_others(self) -> bool:
        """Whether callers on other machines need no key, and nobody has said that this is meant."""
        if self.allow_open or self.api_keys or self.api_keys_file is not None:
            return False
        return not addresses.is_loopback(self.host)

    @property
    def redis(self) -> str | None:
        return self.redis_url.get_secret_value() if self.redis_url else None

    def with_kinds(self, trained: KindRules | None) -> Self:
        """With the rules that an artefact was trained by, where none are given.

        Raises:
            KindsDiffer: rules of another meaning are given.
        """
        told = KindRules.parse(self.kinds) if self.kinds else None
        fix = "leave TIM4REC_KINDS out, or serve a model that was trained by these"
        rules = agreed_kinds(told, {self.artefact: trained}, fix)
        return self if rules is None else self.model_copy(update={"kinds": str(rules)})

    @property
    def fetched_models(self) -> Path:
        """The folder of models that come from an object store."""
        return self.data_dir / "models"

    def shared(self) -> dict[str, str]:
        """The settings that all processes of a store and namespace must have alike: of two that
        differ in one, what an event becomes, or what is left of others, would depend on which of
        them it came to. As texts that are the same where the meaning is."""
        values = {name: str(getattr(self, name)) for name in SHARED}
        if self.late_policy != "replay":
            del values["replay_limit"]
        return values | {"kinds": KindRules.parse(self.kinds).text}

    def changed(self) -> dict[str, object]:
        """The settings that differ from their defaults, as `shown`."""
        fields = type(self).model_fields
        shown = self.shown()
        return {name: shown[name] for name in fields if getattr(self, name) != fields[name].default}

    def shown(self) -> dict[str, object]:
        """All settings as JSON values, without the secrets in them."""
        values = self.model_dump(mode="json")
        if self.redis is not None:
            values["redis_url"] = StoreUrl(self.redis).shown
        for name in ("api_keys", "admin_keys"):
            values[name] = f"{len(values[name])} hidden" if values[name] else "none"
        return values


def secrets(values: Iterable[SecretStr]) -> list[str]:
    return [value.get_secret_value() for value in values]
