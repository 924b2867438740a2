# SPDX-License-Identifier: Apache-2.0
"""Questions -> what came of each, asked side by side, so that what does not answer holds up nothing but itself."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from cellmw.deadline import after, left
from cellmw.exceptions import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from cellmw.crew import Crew, Job
    from cellmw.deadline import Deadline

Key = TypeVar("Key", bound="Hashable")
Answer = TypeVar("Answer")

AT_ONCE = 16
"""How many questions are asked at a time: a server that has many cells is not to be full of them."""


def ask(
    questions: Mapping[Key, Callable[[], Answer]], patience: float, crew: Crew, at_once: int = AT_ONCE
) -> dict[Key, Answer | Exception]:
    """Ask all of them, each in a thread of the crew, and return the answers in the order of the questions.

    :param patience: seconds that each of them has
    :param at_once: how many are asked at a time
    :returns: for each what it has returned or raised; a DeadlineExceeded where it was not done in time
    """
    free = threading.Semaphore(at_once)
    answers: dict[Key, Answer | Exception] = {}
    begun: deque[tuple[Job[None], Deadline, list[None]]] = deque()

    def give_back(place: list[None]) -> None:
        with suppress(IndexError):  # it was given back before
            place.pop()
            free.release()

    def work(key: Key, question: Callable[[], Any], place: list[None]) -> None:
        try:
            answers[key] = question()
        except Exception as error:  # noqa: BLE001 - it is the caller's to say what it means
            answers[key] = error
        finally:
            give_back(place)

    for key, question in questions.items():
        while not free.acquire(timeout=left(begun[0][1]) if begun else None):
            give_back(begun.popleft()[2])  # of the one that was begun first, which has had its time
        place: list[None] = [None]
        deadline = after(patience)
        begun.append((crew.start(partial(work, key, question, place), set()), deadline, place))
    for job, deadline, _ in begun:
        job.wait(left(deadline))
    return {key: answers.get(key, DeadlineExceeded("an answer")) for key in questions}
