"""`python -m decisioning.run_celery worker|beat`: Celery's own worker and beat without Celery's command line.

The command line imports a terminal toolkit, and the worker checks the whole web side, which here was checked by the tests:
together more code than a worker needs to work, in each of three processes, each time one is started.
"""

import argparse
import os
import sys


def main(argv: list[str] | None = None) -> int:
    """Run until a signal ends it. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m decisioning.run_celery", description=__doc__)
    programs = parser.add_subparsers(dest="program", required=True)
    worker = programs.add_parser("worker", help="do the jobs of a queue")
    worker.add_argument("--queues", help="names with commas between (default: celery)")
    worker.add_argument("--hostname", help="name among the workers, %%h for the machine's (default: celery@%%h)")
    worker.add_argument("--pool", default="prefork", help="prefork or threads (default: %(default)s)")
    worker.add_argument("--concurrency", type=int, default=2, help="jobs at a time (default: %(default)s)")
    beat = programs.add_parser("beat", help="say when each job is due")
    beat.add_argument("--schedule", required=True, help="file that keeps when each was last due")
    options = parser.parse_args(argv)

    os.environ.setdefault("CELERY_SKIP_CHECKS", "true")
    from celery.utils.nodenames import default_nodename, host_format

    from decisioning.celery import app

    if options.program == "beat":
        app.Beat(schedule=options.schedule, loglevel="INFO").run()
        return 0
    process = app.Worker(
        hostname=host_format(default_nodename(options.hostname)),
        queues=options.queues,
        pool_cls=options.pool,
        concurrency=options.concurrency,
        loglevel="INFO",
        without_mingle=True,
        without_gossip=True,
    )
    process.start()
    return process.exitcode or 0


if __name__ == "__main__":
    sys.exit(main())
