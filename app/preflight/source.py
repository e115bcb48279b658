"""The source stage by stage: name, connection, credential, metadata, one range of weights.

Takes settings and a deadline, gives findings and the checkpoint's description. What each stage means is
`judgement.source`'s to say.
"""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
import time
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

import msgspec

from app.preflight.deadline import Deadline, Late
from app.preflight.finding import FAILED, SOURCE, Finding, failed, ok, refused, skipped, unexpected
from app.preflight.judgement import source as judgement
from app.preflight.judgement.source import Answer
from app.settings import Settings
from streaming.causes import Cause
from streaming.counters import FetchCounters
from streaming.credentials import choose
from streaming.describe import Description, describe
from streaming.errors import CheckpointError, SourceError, StreamingError
from streaming.exception_causes import cause_of_exception, detail_of_exception, is_untrusted
from streaming.options import HOST_STAGING, AzureOptions, SourceOptions
from streaming.retrying import Retries, RetryingSource
from streaming.source import open_source
from streaming.staging import Staging
from streaming.token_errors import PUBLIC_CLOUD, WORKLOAD_IDENTITY, TokenAnswer, token_error
from streaming.uri import AzureLocation, FileLocation, HttpLocation, Location, parse
from streaming.workload_identity import unreadable_token

_RANGE_BYTES = 8 << 20
_MOST_RETRIES = 2
# Of the time that is left: a read whose retries are over has an error to tell, one that is cut off has none.
_SHARE = 0.4


class SourceChecks:
    """The way to one checkpoint; `description` is there once the metadata was read."""

    def __init__(self, settings: Settings, deadline: Deadline):
        self._settings = settings
        self._deadline = deadline
        self._location: Location | None = None
        self._source: RetryingSource | None = None
        self._staging: Staging | None = None
        self._credential = ""
        self._answer: Answer | None = None
        self.description: Description | None = None

    @property
    def is_folder(self) -> bool:
        """Whether the checkpoint lies on this machine."""
        return isinstance(self._location, FileLocation)

    def findings(self) -> list[Finding]:
        """Every stage; those behind one that failed are skipped."""
        stages = {
            "source": self._parse,
            "dns": self._resolve,
            "connection": self._connect,
            "clock": self._clock,
            "credential": self._choose,
            "metadata": self._describe,
            "throughput": self._read,
        }
        found: list[Finding] = []
        for name, stage in stages.items():
            if found and (cause := next((f.name for f in found if f.status == FAILED), "")):
                found.append(skipped(name, f"{cause} failed"))
                continue
            try:
                found.append(stage())
            except Late as late:
                remedy = "check the network or the mount between, or allow more with --timeout"
                found.append(failed(name, SOURCE, str(late), remedy))
            except StreamingError as error:
                found.append(refused(name, error))
            except Exception as error:  # noqa: BLE001 - a check that breaks is a finding, too
                found.append(unexpected(name, SOURCE, error))
        return found

    def _parse(self) -> Finding:
        uri, storage = self._settings.model.uri, self._settings.storage
        try:
            azure = storage.source_options().azure
            self._location = self._deadline.run(lambda: parse(uri, azure))  # a path is resolved, on a mount perhaps
        except ValueError as error:
            return failed("source", SOURCE, f"the URI cannot be read: {error}", "write az://CONTAINER/PREFIX")
        if self._settings.model.load_strategy == HOST_STAGING:  # which refuses what it cannot read from
            self._staging = Staging(self._location, storage.source_options(), storage.pipeline_options())
        where = f" at {self._location.account_url}" if isinstance(self._location, AzureLocation) else ""
        return ok("source", f"{self._location}{where}", uri=uri)

    def _resolve(self) -> Finding:
        endpoint = self._endpoint()
        if reason := self._not_direct(endpoint):
            return skipped("dns", reason)
        host, start_s = endpoint.hostname or "", time.monotonic()
        try:
            infos = self._deadline.run(lambda: socket.getaddrinfo(host, _port(endpoint), type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            return judgement.unknown_host(host, getattr(error, "strerror", None) or str(error))
        except Late as late:
            return judgement.unknown_host(host, str(late))
        addresses = list(dict.fromkeys(str(info[4][0]) for info in infos))
        return judgement.judge_dns(host, addresses, time.monotonic() - start_s)

    def _connect(self) -> Finding:
        endpoint = self._endpoint()
        if reason := self._not_direct(endpoint):
            return skipped("connection", reason)
        address = f"{endpoint.hostname}:{_port(endpoint)}"
        timeout_s = min(self._settings.storage.connect_timeout_s, self._deadline.left_s * _SHARE)
        try:
            self._answer = self._deadline.run(lambda: _ask(endpoint, timeout_s))
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", "") or error.reason or "the handshake failed"
            certificate = isinstance(error, ssl.SSLCertVerificationError)
            return judgement.not_connected(address, reason, is_certificate=certificate)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return judgement.not_connected(address, reason, is_certificate=False)
        except Late as late:
            return judgement.not_connected(address, str(late), is_certificate=False)
        return judgement.judge_connection(address, self._answer)

    def _clock(self) -> Finding:
        return judgement.judge_clock(self._answer) if self._answer else skipped("clock", "nobody was asked for a date")

    def _choose(self) -> Finding:
        if not isinstance(self._location, AzureLocation):
            of_aws = "AWS's variables and roles, as obstore finds them"
            none = isinstance(self._location, FileLocation | HttpLocation)
            return skipped("credential", "the source takes none" if none else of_aws)
        azure = self._settings.storage.source_options().azure
        self._credential = choose(azure)
        if self._credential == WORKLOAD_IDENTITY:
            if flaw := unreadable_token(azure):
                return failed("credential", SOURCE, flaw.found, flaw.remedy)
            self._reach_authority(azure)
        return judgement.judge_credential(self._credential, azure, datetime.now(UTC))

    def _reach_authority(self, azure: AzureOptions) -> None:
        """Connect to who gives tokens: a network that lets nothing through would take the time of every read, one after another.

        Raises:
            TokenUnavailable: Nobody is there.
        """
        authority = urlsplit(azure.authority_host or PUBLIC_CLOUD)
        if self._not_direct(authority):
            return
        timeout_s = min(self._settings.storage.connect_timeout_s, self._deadline.left_s * _SHARE)
        try:
            self._deadline.run(lambda: _ask(authority, timeout_s))
        except (OSError, http.client.HTTPException, Late) as error:
            cause = Cause.TIMEOUT if isinstance(error, Late) else cause_of_exception(error, Cause.CONNECT)
            answer = TokenAnswer(cause=cause, detail=detail_of_exception(error), is_untrusted=is_untrusted(error))
            raise token_error(WORKLOAD_IDENTITY, azure, answer) from error

    def _describe(self) -> Finding:
        start_s = time.monotonic()
        options = self._hurried()
        try:
            opened = self._deadline.run(lambda: open_source(self._settings.model.uri, options))
            source = self._source = RetryingSource(opened, Retries(options, FetchCounters()))
            found = self._deadline.run(lambda: describe(source, self._on_flaw))
        except StreamingError as error:
            return judgement.unread("metadata", error, self._credential)
        if self._staging is not None:
            self._staging.check(len(found.versions))
        self.description = found
        shards_bytes = sum(version.size_bytes for version in found.versions)
        elapsed_s = time.monotonic() - start_s
        return judgement.judge_metadata(len(found.entries), len(found.versions), shards_bytes, elapsed_s)

    def _on_flaw(self, flaw: CheckpointError) -> None:
        """As `serve` does."""
        if self._settings.startup.fail_if_checksum_mismatch:
            raise flaw

    def _read(self) -> Finding:
        assert self._source is not None  # it was described
        assert self.description is not None
        source, lanes = self._source, self._settings.storage.pipeline_options().lanes
        shard = max(self.description.versions, key=lambda version: version.size_bytes)
        nbytes, start_s = min(_RANGE_BYTES, shard.size_bytes), time.monotonic()
        try:
            self._deadline.run(lambda: asyncio.run(source.read_range(shard, 0, nbytes)))
        except StreamingError as error:
            return judgement.unread("throughput", error, self._credential)
        return judgement.judge_throughput(nbytes, time.monotonic() - start_s, lanes)

    def _endpoint(self) -> SplitResult:
        """The URL whose host is spoken to; without a host where that is nobody, or not ours to know."""
        match self._location:
            case AzureLocation(account_url=url) | HttpLocation(base_url=url):
                return urlsplit(url)
        return urlsplit("")

    def _not_direct(self, endpoint: SplitResult) -> str:
        """Why no connection of ours would be the one that `serve` makes, or ""."""
        if not endpoint.hostname:
            return "the source is a folder" if self.is_folder else "AWS's variables choose the endpoint"
        proxies = getproxies()
        proxy = proxies.get(endpoint.scheme) or proxies.get("all")
        if proxy and not proxy_bypass(endpoint.hostname):
            return f"reached through the proxy {urlsplit(proxy).hostname}"
        return ""

    def _hurried(self) -> SourceOptions:
        """The settings' own options, but an error while there is time left to tell it."""
        options, share_s = self._settings.storage.source_options(), self._deadline.left_s * _SHARE
        return msgspec.structs.replace(
            options,
            connect_timeout_s=min(options.connect_timeout_s, share_s),
            read_timeout_s=min(options.read_timeout_s, share_s),
            request_timeout_s=min(options.request_timeout_s, share_s),
            retry_timeout_s=min(options.retry_timeout_s, share_s),
            max_retries=min(options.max_retries, _MOST_RETRIES),
        )


def _port(endpoint: SplitResult) -> int:
    try:
        given = endpoint.port
    except ValueError as error:
        raise SourceError(f"{endpoint.netloc}: no port ({error}): correct the endpoint") from error
    return given or (443 if endpoint.scheme == "https" else 80)


def _ask(endpoint: SplitResult, timeout_s: float) -> Answer:
    """Connect, and ask for the date."""
    host, port = endpoint.hostname or "", _port(endpoint)
    if endpoint.scheme == "https":
        context = ssl.create_default_context()
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, port, timeout=timeout_s, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        start_s = time.monotonic()
        connection.connect()
        connected_s = time.monotonic()
        secure = connection.sock if isinstance(connection.sock, ssl.SSLSocket) else None
        tls_version = secure.version() if secure else None
        return Answer(connected_s - start_s, tls_version, _date_s(connection, endpoint.path or "/"), time.time())
    finally:
        connection.close()


def _date_s(connection: http.client.HTTPConnection, path: str) -> float | None:
    """Any answer has the server's; one who does not know HEAD, or this path, may say nothing, and serve all the rest."""
    with suppress(TimeoutError, ConnectionError, http.client.HTTPException):
        connection.request("HEAD", path)
        return _unix_time(connection.getresponse().getheader("Date"))
    return None


def _unix_time(date: str | None) -> float | None:
    with suppress(ValueError, OverflowError):
        return parsedate_to_datetime(date).timestamp() if date else None
    return None
