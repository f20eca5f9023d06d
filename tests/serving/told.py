"""A model that says what a test tells it to, with the tokenizer of the embedded one: for what is between texts and clients."""

import threading
import time
from collections.abc import Callable

from bitnet_cli.model.generate import Timings
from bitnet_cli.model.opening import OpenModel
from bitnet_cli.serving.jobs import Ended, Job, Prompted, Tell, Written
from bitnet_cli.serving.worker import Ticket, Worker

Say = Callable[[Job], tuple[str, float]]  # a prompt -> the answer, and seconds between its pieces


class ToldWorker(Worker):
    """Says `say(job)` in pieces of `size` characters."""

    def __init__(self, opened: OpenModel, say: Say, size: int = 7):
        super().__init__(opened)
        self._say, self._size = say, size
        self.jobs: list[Job] = []
        self.told: list[Ticket] = []

    def submit(self, job: Job, tell: Tell) -> Ticket:
        ticket = Ticket()
        self.jobs.append(job)
        self.told.append(ticket)
        self._tickets.add(ticket)
        threading.Thread(target=self._tell, args=(job, ticket, tell), daemon=True).start()
        return ticket

    def _tell(self, job: Job, ticket: Ticket, tell: Tell) -> None:
        text, pause = self._say(job)
        tell(Prompted())
        pieces = [text[at : at + self._size] for at in range(0, len(text), self._size)]
        for piece in pieces:
            if ticket.cancelled:
                tell(Ended("cancelled"))
                return
            tell(Written(piece, [5]))
            time.sleep(pause)
        tell(Ended("stop", Timings(len(job.prompt), 0, len(pieces), 0.1, 0.2, finish="stop")))
