"""The process that renders a model's chat template, and may be ended for what the template does.

    consumes     from standard input: one frame of settings, then frames of conversations
    waits for    the next frame
    unblocked by a frame, or the end of the input
    produces     on standard output one frame each: {"text": ...} or {"error": kind, "message": ...}

A template is a program by whoever made the model's folder. Here it has no files, no network and jinja's sandbox; the
kernel ends it (SIGPROF) when a conversation takes more CPU time than it may, also inside arithmetic that never comes
back to Python, and refuses memory above the limit. The environment is that of transformers' `apply_chat_template`, so
that texts are the same. Run by its path with `python -I`: it imports nothing but jinja2.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from datetime import datetime
from typing import IO, Any

import jinja2
import jinja2.nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HEADER_BYTES = 8


def read_frame(stream: IO[bytes]) -> Any:
    """The next value, None at the end of the stream."""
    header = stream.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        return None
    content = stream.read(int.from_bytes(header, "big"))
    return json.loads(content)


def write_frame(stream: IO[bytes], value: Any) -> None:
    content = json.dumps(value).encode()
    stream.write(len(content).to_bytes(HEADER_BYTES, "big") + content)
    stream.flush()


class _Generation(Extension):
    """`{% generation %}` marks what an assistant wrote; the text within is all that counts here."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own declaration

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_pass_on"), [], [], body).set_lineno(line)

    def _pass_on(self, caller: Any) -> str:
        return caller()


def build_environment() -> ImmutableSandboxedEnvironment:
    """The jinja environment that transformers gives templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment


def _limit_memory(num_bytes: int) -> None:
    """From here on, where the machine does not allow less."""
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = num_bytes if most == resource.RLIM_INFINITY else min(num_bytes, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))


def main() -> None:
    """Serves until the input ends."""
    source, answers = sys.stdin.buffer, sys.stdout.buffer
    settings = read_frame(source)
    if settings is None:
        return
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    template: jinja2.Template | None = None
    while (request := read_frame(source)) is not None:
        _limit_memory(request["memory_bytes"])
        signal.setitimer(signal.ITIMER_PROF, request["cpu_s"])
        try:
            if template is None:
                template = build_environment().from_string(settings["template"])
            values = settings["variables"] | {"tools": None, "documents": None}
            text = template.render(messages=request["messages"], add_generation_prompt=request["prompt"], **values)
            if len(text) > request["max_chars"]:
                answer = {"error": "length", "message": f"{len(text)} characters"}
            else:
                answer = {"text": text}
        except MemoryError:
            answer = {"error": "memory", "message": ""}
        except jinja2.TemplateSyntaxError as error:
            answer = {"error": "syntax", "message": f"line {error.lineno}: {error.message}"}
        except jinja2.TemplateError as error:
            answer = {"error": "refused", "message": str(error)}
        except RecursionError:
            answer = {"error": "failed", "message": "it is nested too deeply"}
        except Exception as error:  # whatever the template's own arithmetic raises
            answer = {"error": "failed", "message": f"{type(error).__name__}: {error}"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        write_frame(answers, answer)


if __name__ == "__main__":
    main()
