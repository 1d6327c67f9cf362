"""SIGTERM is noted while training, and means what it did before and after."""

import os
import signal
import threading

from sr1_jax.training.termination import Termination


def test_noted_and_given_back():
    calls = []
    before = signal.signal(signal.SIGTERM, lambda *_: calls.append("old"))
    try:
        with Termination() as termination:
            assert not termination.noted
            os.kill(os.getpid(), signal.SIGTERM)
            assert termination.noted and not calls
        os.kill(os.getpid(), signal.SIGTERM)
        assert calls == ["old"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_it_does_nothing():
    handlers = []

    def work():
        with Termination() as termination:
            handlers.append(signal.getsignal(signal.SIGTERM))
            assert not termination.noted

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]
