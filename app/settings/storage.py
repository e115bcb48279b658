"""The settings of the `storage` section: the source, its credentials and the lanes.

Gives `streaming`'s options. Knows no flag's or variable's value: sources are read elsewhere.
"""

from typing import Annotated

from msgspec import structs

from app.settings.kinds import BOOL, MIB, SECRET, TEXT, URI, Kind, choice, integer, mebibytes, number, size
from app.settings.memory import LEAST, UNLIMITED, fit_memory
from app.settings.table import Section, Setting
from streaming.options import (
    AzureOptions,
    CacheOptions,
    HedgingOptions,
    PipelineOptions,
    SourceOptions,
    ThrottlingOptions,
)

DEFAULT_CACHE_DIR = "/var/cache/coldstream"
_SOURCE, _PIPELINE = SourceOptions(), PipelineOptions()
_THROTTLING = _PIPELINE.throttling
# azure-identity's own variable: what it means beyond these two is for DefaultAzureCredential to say.
_TOKEN_CREDENTIALS = Kind(
    accepts="a name that azure-identity knows",
    metavar="NAME",
    read=lambda text: {
        "managedidentitycredential": "managed-identity",
        "workloadidentitycredential": "workload-identity",
    }.get(text.lower(), "auto"),
)


class StorageSettings(Section, frozen=True, kw_only=True):
    """How to reach the source and how hard to pull."""

    lanes: Annotated[
        int,
        Setting(
            integer(1, 256),
            "How many ranged reads are in flight at once.",
            flags=("--concurrency", "--load-concurrency"),
            variables=("RUNAI_STREAMER_CONCURRENCY",),
            keys=("prefetch_concurrency",),
            loader_key="concurrency",
        ),
    ] = _PIPELINE.lanes
    chunk_bytes: Annotated[
        int,
        Setting(
            size(MIB, 256 * MIB),
            "How much one ranged read asks for.",
            flags=(("--chunk-mib", mebibytes(1, 256)), "--chunk-bytes"),
            variables=("RUNAI_STREAMER_CHUNK_BYTESIZE",),
            unit="bytes",
        ),
    ] = _PIPELINE.chunk_bytes
    memory_limit_bytes: Annotated[
        int,
        Setting(
            size(UNLIMITED, accepts="-1 (no limit), 0 (the least) or a size in bytes, such as 512MiB"),
            "Host memory of all chunks (two per lane, and more for second reads and writers); lanes, then chunks, are reduced to fit.",
            flags=("--memory-limit",),
            variables=("RUNAI_STREAMER_MEMORY_LIMIT",),
            loader_key="memory_limit",
            unit="bytes",
        ),
    ] = UNLIMITED
    min_lanes: Annotated[
        int,
        Setting(
            integer(1, 256),
            "The fewest ranged reads at once, where the source asks for less or is slowed by more.",
            flags=("--min-concurrency",),
        ),
    ] = _THROTTLING.min_lanes
    hedge_budget_ratio: Annotated[
        float,
        Setting(
            number(0, 1),
            "How much of the load may be asked for twice, where a range is far slower than others; 0 is nothing.",
        ),
    ] = _PIPELINE.hedging.budget_ratio
    max_bandwidth_bytes_per_s: Annotated[
        int | None,
        Setting(
            size(MIB),
            "The most that all lanes together read per second, from 1 MiB.",
            flags=("--max-bandwidth",),
            unit="bytes/s",
            unset="no limit",
        ),
    ] = _THROTTLING.max_bandwidth_bytes_per_s
    start_jitter_s: Annotated[
        float,
        Setting(
            number(0, 3600),
            "The first read of weights waits for a random time up to this, so that a fleet does not start as one.",
            unit="s",
        ),
    ] = _THROTTLING.start_jitter_s
    distributed: Annotated[
        bool,
        Setting(
            BOOL,
            "Read each byte on one rank only and share it.",
            flags=(),
            loader_key="distributed",
            status="not yet active: one process loads all; with several ranks it will share what each has fetched",
        ),
    ] = False
    local_nvme_cache_enabled: Annotated[
        bool | None,
        Setting(
            BOOL,
            "Keep fetched ranges on a local disk, and read them from there while ETags match; not with host-staging.",
            flags=(),
            unset="true where --cache-dir is given",
        ),
    ] = None
    cache_dir: Annotated[
        str | None,
        Setting(TEXT, "The folder of that cache; servers of one user may share it.", unset=DEFAULT_CACHE_DIR),
    ] = None
    cache_size_bytes: Annotated[
        int,
        Setting(
            size(MIB),
            "How much the cache takes at most; the longest unused blobs go first, and 15 % of the file system stay free.",
            flags=("--cache-size",),
            unit="bytes",
        ),
    ] = CacheOptions(folder="").max_bytes
    connect_timeout_s: Annotated[float, Setting(number(0.001), "To connect to the source.", unit="s")] = (
        _SOURCE.connect_timeout_s
    )
    read_timeout_s: Annotated[
        float, Setting(number(0.001), "Without a byte of an answer, until its connection is given up.", unit="s")
    ] = _SOURCE.read_timeout_s
    request_timeout_s: Annotated[float, Setting(number(0.001), "For one request.", unit="s")] = (
        _SOURCE.request_timeout_s
    )
    max_retries: Annotated[int, Setting(integer(0), "Retries of one request.")] = _SOURCE.max_retries
    retry_timeout_s: Annotated[float, Setting(number(0), "For one request and all its retries.", unit="s")] = (
        _SOURCE.retry_timeout_s
    )
    azure_credential: Annotated[
        str,
        Setting(
            choice(
                "auto",
                "sas-token",
                "account-key",
                "connection-string",
                "workload-identity",
                "managed-identity",
                "anonymous",
                "default",
            ),
            "Which credential to use; auto is the first that is present, in this order.",
            variables=(("AZURE_TOKEN_CREDENTIALS", _TOKEN_CREDENTIALS),),
        ),
    ] = "auto"
    azure_account_name: Annotated[
        str | None,
        Setting(
            TEXT,
            "The storage account of az:// URIs.",
            variables=("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"),
            unset="none",
        ),
    ] = None
    azure_endpoint: Annotated[
        str | None,
        Setting(
            URI,
            "Full URL of the blob service (Azurite, private endpoints).",
            variables=("AZURE_STORAGE_BLOB_ENDPOINT",),
            unset="https://ACCOUNT.SUFFIX",
        ),
    ] = None
    azure_endpoint_suffix: Annotated[
        str, Setting(TEXT, "The cloud's blob host.", variables=("AZURE_STORAGE_ENDPOINT_SUFFIX",))
    ] = AzureOptions().endpoint_suffix
    azure_client_id: Annotated[
        str | None, Setting(TEXT, "The identity to use.", variables=("AZURE_CLIENT_ID",), unset="none")
    ] = None
    azure_tenant_id: Annotated[
        str | None, Setting(TEXT, "Its tenant.", variables=("AZURE_TENANT_ID",), unset="none")
    ] = None
    azure_authority_host: Annotated[
        str | None,
        Setting(URI, "Where tokens come from.", variables=("AZURE_AUTHORITY_HOST",), unset="the public cloud's"),
    ] = None
    azure_federated_token_file: Annotated[
        str | None,
        Setting(TEXT, "The pod's token.", variables=("AZURE_FEDERATED_TOKEN_FILE",), unset="none"),
    ] = None
    azure_account_key: Annotated[
        str | None,
        Setting(
            SECRET,
            "The account's key.",
            flags=(),
            variables=("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY"),
            unset="none",
            secret=True,
        ),
    ] = None
    azure_sas_token: Annotated[
        str | None,
        Setting(
            SECRET,
            "A shared access signature.",
            flags=(),
            variables=("AZURE_STORAGE_SAS_TOKEN",),
            unset="none",
            secret=True,
        ),
    ] = None
    azure_connection_string: Annotated[
        str | None,
        Setting(
            SECRET,
            "The account's connection string.",
            flags=(),
            variables=("AZURE_STORAGE_CONNECTION_STRING",),
            unset="none",
            secret=True,
        ),
    ] = None

    def source_options(self) -> SourceOptions:
        """What `streaming` takes to read from the source."""
        azure = AzureOptions(
            account_name=self.azure_account_name,
            account_key=self.azure_account_key,
            sas_token=self.azure_sas_token,
            connection_string=self.azure_connection_string,
            endpoint=self.azure_endpoint,
            endpoint_suffix=self.azure_endpoint_suffix,
            credential=self.azure_credential,
            client_id=self.azure_client_id,
            tenant_id=self.azure_tenant_id,
            authority_host=self.azure_authority_host,
            federated_token_file=self.azure_federated_token_file,
        )
        return SourceOptions(
            azure=azure,
            connect_timeout_s=self.connect_timeout_s,
            read_timeout_s=self.read_timeout_s,
            request_timeout_s=self.request_timeout_s,
            max_retries=self.max_retries,
            retry_timeout_s=self.retry_timeout_s,
        )

    def pipeline_options(self) -> PipelineOptions:
        """Lanes and chunks, reduced to what the memory limit leaves them, and how they are paced.

        Raises:
            UsageError: Not even one lane fits.
        """
        limit_bytes = self.memory_limit_bytes
        if limit_bytes not in (UNLIMITED, LEAST) and (cache := self.cache_options()) is not None:
            limit_bytes -= cache.queue_bytes
        wish = PipelineOptions(
            lanes=self.lanes,
            chunk_bytes=self.chunk_bytes,
            hedging=HedgingOptions(budget_ratio=self.hedge_budget_ratio),
            throttling=ThrottlingOptions(
                min_lanes=self.min_lanes,
                max_bandwidth_bytes_per_s=self.max_bandwidth_bytes_per_s,
                start_jitter_s=self.start_jitter_s,
            ),
        )
        return fit_memory(wish, limit_bytes)

    def cache_options(self) -> CacheOptions | None:
        """Where ranges are kept; None where they are not. Of a memory limit, a quarter may wait for the disk."""
        is_on = self.cache_dir is not None if self.local_nvme_cache_enabled is None else self.local_nvme_cache_enabled
        if not is_on:
            return None
        options = CacheOptions(folder=self.cache_dir or DEFAULT_CACHE_DIR, max_bytes=self.cache_size_bytes)
        if self.memory_limit_bytes in (UNLIMITED, LEAST):
            return options
        queue_bytes = min(options.queue_bytes, self.memory_limit_bytes // 4)
        return structs.replace(options, queue_bytes=queue_bytes)
