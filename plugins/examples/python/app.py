"""Is the redis well? It is when it answers PING. Argument: --port=6379."""

import wit_world
from componentize_py_types import Err
from wit_world.imports import target, tcp
from wit_world.imports.outcomes import Outcome, ProbeError_Denied, ProbeError_InvalidArguments, Verdict


class WitWorld(wit_world.WitWorld):
    def check(self, arguments: list[str]) -> Outcome:
        port = 6379
        for argument in arguments:
            name, _, value = argument.partition("=")
            if name == "--port":
                if not value.isdigit() or int(value) > 65535:
                    raise Err(ProbeError_InvalidArguments(f"{argument}: no port"))
                port = int(value)
        try:
            with tcp.Connection.open(target.ip(), port) as redis:
                redis.write(b"PING\r\n")
                answer = redis.read(7)
        except Err as error:
            if isinstance(error.value, tcp.TcpError_Denied):
                raise Err(ProbeError_Denied(error.value.value))
            return Outcome(Verdict.FAILURE, error.value.value)
        if answer == b"+PONG\r\n":
            return Outcome(Verdict.SUCCESS, "PONG")
        return Outcome(Verdict.FAILURE, answer.decode(errors="replace"))
