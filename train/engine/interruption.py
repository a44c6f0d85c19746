"""Leaving a run in good order when the cluster, or its user, asks for it."""

import multiprocessing
import os
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

# EX_TEMPFAIL: the program did not fail, and is to be started again with the same command.
EXIT_STATUS = 75


class Interrupted(Exception):
    """The run was asked to stop, has saved, and goes on when it is started again.

    Args:
      step: the last one that it has done.
    """

    def __init__(self, step: int):
        super().__init__(f"The run was asked to stop, and has left after step {step}.")


class Interruption:
    """Turns SIGTERM, and the first SIGINT, into a question that the training loop asks.

    A context manager for the main thread, entered once `jax.distributed` is initialised. The
    second SIGINT raises KeyboardInterrupt, as ever; more SIGTERMs change nothing.

    In a run of several processes it is enough that one of them gets the signal. There JAX's
    preemption service listens for SIGTERM (since `jax.distributed.initialize`), passes it on, and
    finds a step that no process has reached yet, within a second or two.
    """

    def __init__(self):
        self._alone = jax.process_count() == 1
        self._asked = False

    def __enter__(self) -> "Interruption":
        self._before = {signal.SIGINT: signal.signal(signal.SIGINT, self._interrupt)}
        if self._alone:
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._terminate)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self, step: int) -> bool:
        """Whether to save and leave after this step: the same answer in all processes.

        All of them ask after every step; between two calls they need not be in step. It costs a
        tenth of a millisecond with several processes, and nothing with one.
        """
        return self._asked if self._alone else multihost_utils.reached_preemption_sync_point(step)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGTERM)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self._asked = True


def obey_main_process(index: int = 0, count: int = 1) -> None:
    """Called first in each worker process: it ends when the main process does.

    Not before, on a signal that clusters and terminals send to all processes of a job, for the main
    process needs it until it has left; and not later, where that one is killed.

    Args:
      index, count: of the workers; not used, but Grain gives them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=[multiprocessing.parent_process()], daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
