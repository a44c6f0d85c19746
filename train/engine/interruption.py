"""Stopping a run after a checkpoint, on SIGTERM or Ctrl-C."""

import multiprocessing
import os
import signal
import threading
from multiprocessing.process import BaseProcess
from types import FrameType

import jax
from jax.experimental import multihost_utils

# EX_TEMPFAIL of sysexits.h: the same command should be started again.
EXIT_STATUS = 75


class Interrupted(Exception):
    """The run was asked to stop and has saved a checkpoint. Started again, it resumes.

    Args:
      step: number of steps done.
    """

    def __init__(self, step: int):
        super().__init__(f"The run was asked to stop; a checkpoint of step {step} is saved.")


class Interruption:
    """Records SIGTERM and the first SIGINT, for the training loop to poll.

    A context manager for the main thread, to be entered after `jax.distributed.initialize`. The
    second SIGINT raises KeyboardInterrupt, as usual; further SIGTERMs change nothing.

    In a run of several processes, a signal to any of them stops all. JAX's preemption service
    handles SIGTERM there: within a second or two it agrees on a step that no process has reached.
    """

    def __init__(self):
        self._single_process = jax.process_count() == 1
        self._requested = False

    def __enter__(self) -> "Interruption":
        self._before = {signal.SIGINT: signal.signal(signal.SIGINT, self._interrupt)}
        if self._single_process:
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._terminate)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self, step: int) -> bool:
        """Whether to save and stop after this step; the same in all processes.

        Every process must call it after every step, but not at the same time. A call takes 0.1 ms
        in a run of several processes.
        """
        if self._single_process:
            return self._requested
        return multihost_utils.reached_preemption_sync_point(step)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGTERM)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self._requested = True


def obey_main_process(index: int = 0, count: int = 1) -> None:
    """Makes a worker process exit when the main process exits. Called first in each worker.

    Clusters and terminals send signals to all processes of a job. A worker ignores them, since the
    main process needs it until the last checkpoint is saved. If the main process is killed, the
    worker exits too.

    Args:
      index, count: of the workers; unused, but passed by Grain.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(
        target=_exit_after, args=[multiprocessing.parent_process()], daemon=True
    ).start()


def _exit_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
