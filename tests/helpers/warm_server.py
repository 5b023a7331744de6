"""A process that forks others, with large libraries imported already."""

import array
import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import socket
import sys
import types
from pathlib import Path

# What the hosts import, and nothing of theirs: in each fork, mmengine, mmcv,
# mmdet, mmseg and taskptq are imported as in any fresh process.
LIBRARIES = (
    'torch.distributed.optim',
    'torch.distributed.run',
    'torch.utils.data',
    'torch.utils.tensorboard',
    'cv2',
    'imgaug',
    'matplotlib.pyplot',
    'mpl_toolkits.mplot3d',
    'numba',
    'pycocotools.mask',
    'regex',
    'rich.progress',
    'scipy.optimize',
    'scipy.stats',
    'shapely.geometry',
    'sympy',
    'yapf',
)


def become(words: list[str]) -> None:
    """Run what ``python WORDS`` would."""
    sys.argv = words[1:] if words[0] == '-m' else list(words)
    if words[0] == '-c':
        sys.argv = ['-c', *words[2:]]
        sys.path.insert(0, '')
        main = types.ModuleType('__main__')
        sys.modules['__main__'] = main
        exec(compile(words[1], '<string>', 'exec'), vars(main))
    elif words[0] == '-m':
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(words[1], run_name='__main__', alter_sys=True)
    else:
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name='__main__')


def status_of(error: SystemExit) -> int:
    """Return the exit status that Python would give."""
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    sys.stderr.write(f'{error.code}\n')
    return 1


def run(request: dict, standard: list[int]) -> None:
    """Be a process of its own; does not return."""
    status = 1
    try:
        for number, descriptor in enumerate(standard):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.chdir(request['cwd'])
        os.environ.clear()
        os.environ.update(request['env'])
        extra = request['env'].get('PYTHONPATH', '').split(os.pathsep)
        # The server starts without PYTHONPATH and with no folder of its own.
        sys.path[:0] = [path for path in extra if path]
        become(request['words'])
        status = 0
    except SystemExit as error:
        status = status_of(error)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        atexit._run_exitfuncs()
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def state_of(pid: int) -> int | None:
    """Return how a child ended, negative by a signal; None while it runs."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def serve(own: socket.socket) -> None:
    """Fork and watch as asked, until the other side is gone."""
    while True:
        size = array.array('i').itemsize * 3
        text, ancillary, _, _ = own.recvmsg(1 << 20, socket.CMSG_SPACE(size))
        if not text:
            return
        standard = array.array('i')
        for _, _, content in ancillary:
            standard.frombytes(content)
        request = json.loads(text)
        if 'pid' in request:
            answer = state_of(request['pid'])
        elif not (answer := os.fork()):
            own.close()
            run(request, list(standard))
        for descriptor in standard:
            os.close(descriptor)
        own.send(json.dumps(answer).encode())


def main() -> None:
    sys.path.pop(0)
    # As in the tests themselves; no fork looks for garbage among libraries.
    gc.set_threshold(20_000, 20, 20)
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == '__main__':
    main()
