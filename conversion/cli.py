# SPDX-License-Identifier: Apache-2.0
"""The command `plt-convert`, and how it ends."""

import signal
import sys

from .messages import one_line


def run(arguments: list[str]) -> None:
    """Do what a command line says."""
    # torch and transformers take seconds to import: an interruption then is one like any other
    from .arguments import inspect_parser, read_request
    from .convert import convert
    from .inspection import inspect

    if arguments[:1] == ["inspect"]:
        args = inspect_parser().parse_args(arguments[1:])
        print(inspect(args.source, args.revision))
    else:
        request = read_request(arguments)
        for sentence in convert(request):
            print(sentence)
        print(f"Wrote {request.target}")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors that the user can act on end with status 1 and one sentence."""
    came = []

    def stop(number: int, _: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    # an interrupted run cleans up behind itself
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)
    try:
        run(sys.argv[1:] if arguments is None else arguments)
    except (Exception, KeyboardInterrupt) as error:
        # a library can make any other error of an interruption
        message = "terminated" if signal.SIGTERM in came else "interrupted" if came else sentence(error)
        if message is None:
            raise
        if message != "interrupted":
            sys.exit(f"plt-convert: {message}")
        print("plt-convert: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def sentence(error: BaseException) -> str | None:
    """What to say about an error; None if it is a mistake of ours."""
    if isinstance(error, ValueError | OSError | ImportError):
        return one_line(error)
    return {MemoryError: "the memory does not suffice", KeyboardInterrupt: "interrupted"}.get(type(error))


if __name__ == "__main__":
    main()
