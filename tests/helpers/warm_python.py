"""Python processes of their own, without most of the time to start them.

``run`` and ``start`` are ``subprocess.run`` and ``Popen`` for Python: the
process has its own memory, environment and current folder, can be killed, and
has imported nothing of mm packages or of taskptq. It is forked from a server
that has imported the large libraries below them (torch, OpenCV, matplotlib,
...), so tests of what a start imports need a real process.
"""

import array
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import cache
from pathlib import Path

SERVER = Path(__file__).with_name('warm_server.py')


@cache
def server() -> socket.socket:
    """Start the server of this test process; it ends with the socket."""
    own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = dict(os.environ, OMP_NUM_THREADS='1')
    environment.pop('PYTHONPATH', None)
    with other:
        subprocess.Popen(
            [sys.executable, str(SERVER), str(other.fileno())],
            env=environment,
            pass_fds=[other.fileno()],
        )
    return own


def ask(request: dict, *, standard=()):
    """Send a request, with file descriptors; return the answer."""
    rights = [
        (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', standard))
    ]
    server().sendmsg(
        [json.dumps(request).encode()], rights if standard else []
    )
    answer = server().recv(1 << 10)
    assert answer, 'the server of Python processes has ended'
    return json.loads(answer)


class Process:
    """A running Python process; a part of what ``Popen`` is."""

    def __init__(self, words, *, cwd, env, standard):
        self.args = words
        self.returncode = None
        self.pid = ask(
            {
                'words': [str(word) for word in words],
                'cwd': str(cwd or Path.cwd()),
                'env': dict(os.environ if env is None else env),
            },
            standard=standard,
        )

    def poll(self):
        """Return how it ended, None while it runs."""
        if self.returncode is None:
            self.returncode = ask({'pid': self.pid})
        return self.returncode

    def wait(self, timeout=300):
        """Wait for its end; return its status.

        Raises:
            subprocess.TimeoutExpired: After ``timeout`` seconds; it is then
                killed.
        """
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                os.kill(self.pid, 9)
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.005)
        return self.returncode


def start(words, *, cwd=None, env=None, stdin=None, stdout=None, stderr=None):
    """Start ``python WORDS``.

    Args:
        words: A script, ``-c`` and a program, or ``-m`` and a module; then
            its arguments.
        cwd: Its current folder.
        env: Its environment.
        stdin: File to read from; ``subprocess.PIPE`` makes one that this
            process writes, None is an empty one.
        stdout: File to write to; ``subprocess.PIPE`` makes one that this
            process reads, None is nowhere.
        stderr: The same for errors.
    """
    with ExitStack() as stack:
        nowhere = stack.enter_context(Path(os.devnull).open('r+b'))
        theirs, ours = [], []
        for number, file in enumerate((stdin, stdout, stderr)):
            own = None
            if file is subprocess.PIPE:
                ends = [os.fdopen(end, mode) for end, mode in pipe()]
                file, own = ends if number == 0 else reversed(ends)
                stack.enter_context(file)
            theirs.append((file or nowhere).fileno())
            ours.append(own)
        process = Process(words, cwd=cwd, env=env, standard=theirs)
        process.stdin, process.stdout, process.stderr = ours
        return process


def pipe():
    """Return the two ends of a pipe, with the mode of each."""
    return zip(os.pipe(), ('r', 'w'), strict=True)


def run(words, *, cwd=None, env=None, timeout=300):
    """Run ``python WORDS``; return a ``CompletedProcess`` with its texts."""
    with (
        tempfile.TemporaryFile('w+') as out,
        tempfile.TemporaryFile('w+') as err,
    ):
        process = start(words, cwd=cwd, env=env, stdout=out, stderr=err)
        status = process.wait(timeout)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(
            process.args, status, out.read(), err.read()
        )


def run_ranks(words, *, env, count=2, cwd=None):
    """Run ``python WORDS`` in several processes, as ``torchrun`` does.

    Raises:
        AssertionError: With the errors of the first that fails; the others
            are then killed.
    """
    group = {
        'WORLD_SIZE': str(count),
        'LOCAL_WORLD_SIZE': str(count),
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': str(free_port()),
    }
    with ExitStack() as stack:
        ranks = {}
        for rank in map(str, range(count)):
            errors = stack.enter_context(tempfile.TemporaryFile('w+'))
            own = {'RANK': rank, 'LOCAL_RANK': rank}
            process = start(
                words, cwd=cwd, env={**env, **group, **own}, stderr=errors
            )
            ranks[process] = errors
        failed = first_failure(ranks)
        if failed is not None:
            ranks[failed].seek(0)
            raise AssertionError(ranks[failed].read()[-3000:])


def first_failure(processes):
    """Wait until all have ended or one has failed; return the latter."""
    while None in (states := [process.poll() for process in processes]):
        if any(states):
            break
        time.sleep(0.005)
    for process in processes:
        if process.poll() is None:
            os.kill(process.pid, 9)
            process.wait()
    failed = [p for p, state in zip(processes, states, strict=True) if state]
    return failed[0] if failed else None


def free_port():
    """Return a port that nothing listens to."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]
