"""The servers behind a target, which take turns.

A target is "host:port", several of them separated by commas, or anything else that gRPC takes for a name. A name with
several addresses, such as that of a headless service in Kubernetes, is as many servers. (gRPC's own `round_robin` does
not do: it hides which server answered, and so whom else to ask for a version that one server lacks.)
"""

import math
import re
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import grpc

from harmonize_tf.errors import FlagError
from serving import messages

_MIB = 1 << 20
_CHANNEL_OPTIONS = (
    # A response of 3h x 3w x B is soon above gRPC's 4 MiB.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # gRPC's own transparent retries silently skip requests larger than this (256 KiB by default).
    ("grpc.per_rpc_retry_buffer_size", 64 * _MIB),
    # Finds out about a dead connection while a request is under way; servers allow no more than 5 minutes' idle pings.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # An address where nobody is, not even to refuse, is given up after 3 s (20 by default), and one that is back is
    # found within 5 s (2 minutes by default).
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)
_HOST_AND_PORT = re.compile(r"(?:dns:///)?(\[[^\]]+\]|[^:/\[\]]+):(\d+)")
# Seconds: how long a server that failed is passed over while others are there, and how old an answer of DNS may be.
_REST, _LOOK_UP = 1.0, 30.0


class Server:
    """One address.

    Attributes:
      address: as gRPC takes it.
      resting_until: when to ask it again, of the monotonic clock.
      gone_since: when it was found that the target no longer has it; infinity while it has.
    """

    def __init__(self, address: str, name: str, credentials: grpc.ChannelCredentials | None) -> None:
        self.address, self.resting_until, self.gone_since = address, 0.0, math.inf
        host = name.removeprefix("dns:///")
        if credentials:  # the certificate is of the name, whatever address it has
            options = [("grpc.ssl_target_name_override", host.rpartition(":")[0])] if address != name else []
            self.channel = grpc.secure_channel(address, credentials, (*_CHANNEL_OPTIONS, *options))
        else:
            options = [("grpc.default_authority", host)] if address != name else []
            self.channel = grpc.insecure_channel(address, (*_CHANNEL_OPTIONS, *options))
        self.predict = self._method("Predict", messages.PredictRequest, messages.PredictResponse)
        self.metadata = self._method(
            "GetModelMetadata", messages.GetModelMetadataRequest, messages.GetModelMetadataResponse
        )

    def rest(self, waited: float) -> None:
        """Lets the others take its turns, for as long as it let us wait in vain but for a moment at least."""
        self.resting_until = time.monotonic() + max(_REST, waited)

    def _method(self, name: str, request: Any, response: Any) -> Callable[..., Any]:
        return self.channel.unary_unary(
            f"/tensorflow.serving.PredictionService/{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )


class Fleet:
    """All servers of a target. Safe to use from several threads.

    Attributes:
      servers: those that there are now; names are looked up again every half minute.
    """

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None, *, longest: float) -> None:
        """Finds the servers.

        Args:
          target: see above.
          credentials: for servers that speak TLS.
          longest: seconds that a request may take. After them nothing can be under way on a server that has gone.

        Raises:
          FlagError: the target cannot be one.
        """
        self._names = [name.strip() for name in target.split(",")]
        if not all(self._names):
            raise FlagError(f"expected host:port, several separated by single commas. Received: target={target}")
        self._credentials, self._longest = credentials, longest
        self._made: dict[str, Server] = {}
        self._lock, self._turns, self._looked_up = threading.Lock(), 0, 0.0
        self.servers: list[Server] = []
        self._look_up()

    def turn(self, without: Collection[Server] = ()) -> Server:
        """The server whose turn it is; one that rests only if all do.

        Args:
          without: servers not to take, unless there are no others.
        """
        self._look_up()
        with self._lock:
            fit = [server for server in self.servers if server not in without] or self.servers
            awake = [server for server in fit if server.resting_until <= time.monotonic()] or fit
            self._turns += 1
            return awake[self._turns % len(awake)]

    def awake(self, without: Collection[Server] = ()) -> bool:
        """Whether there is a server that does not rest."""
        return any(s.resting_until <= time.monotonic() for s in self.servers if s not in without)

    def all_metadata(self, request: Any, timeout: float) -> Iterator[Any]:
        """What each server that can be reached answers, all asked at once."""
        for call in [server.metadata.future(request, timeout=timeout) for server in self.servers]:
            if call.exception() is None:
                yield call.result()

    def close(self) -> None:
        """Closes all connections."""
        for server in self._made.values():
            server.channel.close()

    def _look_up(self) -> None:
        """Servers come and go behind a name. Connections to those gone are kept while requests may be under way."""
        with self._lock:
            if self.servers and time.monotonic() < self._looked_up + _LOOK_UP:
                return
            self._looked_up = time.monotonic()
        addresses = {address: name for name in self._names for address in _addresses(name)}
        with self._lock:
            for address, name in addresses.items():
                if address not in self._made:
                    self._made[address] = Server(address, name, self._credentials)
            self.servers = [self._made[address] for address in addresses]
            now = time.monotonic()
            for address, server in list(self._made.items()):
                server.gone_since = math.inf if address in addresses else min(server.gone_since, now)
                if now - server.gone_since > self._longest:
                    self._made.pop(address).channel.close()


def _addresses(name: str) -> list[str]:
    """The addresses of a name if it has several of one kind; or else itself, which gRPC then looks up."""
    found = _HOST_AND_PORT.fullmatch(name)
    if not found:
        return [name]
    host, port = found[1].strip("[]"), found[2]
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a part of the name is empty or too long
        raise FlagError(f"no host can have this name; correct it. Received: target={name}") from error
    except OSError:  # gRPC will say so
        return [name]
    v4 = sorted({f"{address[0]}:{port}" for family, *_, address in infos if family == socket.AF_INET})
    v6 = sorted({f"[{address[0]}]:{port}" for family, *_, address in infos if family == socket.AF_INET6})
    # One of each is one host, and gRPC's own affair.
    several = max(v4, v6, key=len)
    return several if len(several) > 1 else [name]
