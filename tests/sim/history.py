"""One random history: what is to happen, drawn from a seed; the world in which it happens; and what must hold of it.

Whatever a seed draws, the same seed draws again. A daemon dies before its n-th act, n drawn beforehand, and comes back
from its disk; a power cut takes what was not synced as well.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from daemon.core.events import Dispatch, SegmentEnded, Tick, WorkerSpec
from daemon.core.scheduler import LAG_SEGMENTS
from daemon.core.supervision import PoolPolicy
from daemon.live_job import COST_OF_A_SEGMENT, LiveJob
from tests.sim import workers as wire
from tests.sim.disk import PaperJob, document
from tests.sim.shell import BrokenPromise, DaemonDied, Shell
from tests.sim.workers import Faults, WorkerProcess

LIFE_S = 0.5
"""Virtual seconds between a daemon's death and its next life."""

NODES = 2
"""Worker n is on node n modulo this."""

MOST_LOSSES = 4
"""A segment may be out at each; from the sixth on it would be taken for what brings nodes down."""

MOST_STEPS = 400_000
STORY = 60

Place = tuple[str, int]
"""A segment: its job's token, its position."""


@dataclass(frozen=True)
class Drop:
    """A job that is dropped at some time, and perhaps cancelled."""

    at: float
    job_id: str
    priority: int
    speakers: tuple[str, ...]
    texts: tuple[str, ...]
    cancelled_at: float | None = None


@dataclass(frozen=True)
class Plot:
    """What is to happen. ``deaths``: before which acts, counted over all lives, the daemon dies, and whether by a power
    cut; ``stalls``: when the daemon stands still (SIGSTOP), and how long; ``plans``: when workers are planned;
    ``losses``: when one of the NODES is lost with all its workers, and which."""

    seed: int
    policy: PoolPolicy
    faults: Faults
    slots: int
    load_s: float
    pace: tuple[float, ...]
    plans: tuple[tuple[float, int, bool], ...]
    drops: tuple[Drop, ...]
    pauses: tuple[float, ...]
    stalls: tuple[tuple[float, float], ...]
    deaths: tuple[tuple[int, bool], ...]
    leak_bytes: int = 0
    losses: tuple[tuple[float, int], ...] = ()

    @property
    def quiet(self) -> bool:
        """Nothing goes wrong and nothing is planned anew: the bounds on fairness must hold."""
        calm = self.faults.none and not self.deaths and not self.stalls and not self.losses
        return calm and len(self.plans) == 1


def draw(seed: int) -> Plot:
    """The plot of a seed."""
    dice = random.Random(seed)
    kind = dice.choice(("quiet", "poison", "faults", "faults", "deaths", "everything"))
    chances = dice.choice((0.01, 0.05, 0.2)) if kind in ("faults", "everything") else 0.0
    drops = []
    for number in range(dice.randint(1, 6)):
        count = dice.choice((0, 1, 5, 20, 51))
        voices = [f"s{voice}" for voice in range(dice.randint(1, 6))]
        at = dice.choice((0.0, dice.uniform(0, 30)))
        cancelled_at = at + dice.uniform(0, 20) if kind != "quiet" and dice.random() < 0.2 else None
        name = f"job{number}"
        drops.append(
            Drop(
                at,
                name,
                dice.choice((0, 0, 0, 1)),
                tuple(dice.choice(voices) for _ in range(count)),
                tuple(f"{name} line {index} {'x' * dice.randint(0, 60)}" for index in range(count)),
                cancelled_at,
            )
        )
        if dice.random() < 0.15:  # the same once more, while the first is running or not
            again = dice.uniform(0, 20)
            drops.append(Drop(at + again, name, 0, drops[-1].speakers, drops[-1].texts))
    texts = [text for drop in drops for text in drop.texts]
    deadly = set(dice.sample(texts, min(len(texts), dice.randint(1, 2)))) if kind in ("poison", "everything") else set()
    venom = {text for text in sorted(deadly) if dice.random() < 0.4}
    deaths: list[tuple[int, bool]] = []
    if kind in ("deaths", "everything"):
        deaths = [(int(10 ** dice.uniform(0, 3.3)), dice.random() < 0.3) for _ in range(dice.randint(1, 4))]
    plans = [(0.0, dice.randint(1, 5), False)]
    if kind not in ("quiet", "poison"):
        plans += [(dice.uniform(0, 40), dice.randint(1, 5), dice.random() < 0.3) for _ in range(dice.randint(0, 3))]
    # Drawn by dice of its own, so that a seed of old goes on telling what it told.
    age = random.Random(~seed)
    plot = Plot(
        seed=seed,
        policy=PoolPolicy(
            lookahead=dice.randint(0, 3),
            segment_timeout_s=30,
            load_timeout_s=20,
            beat_timeout_s=10,
            idle_release_s=dice.choice((0, 5)),
            breaker_open_s=50,
        ),
        faults=Faults(
            budget=dice.randint(1, 25) if chances else 0,
            start=chances,
            crash=chances,
            hang=chances / 2,
            fail=chances,
            memory=chances,
            full_disk=chances / 4,
            spoil=chances,
            lie=chances,
            poison=frozenset(deadly - venom),
            venom=frozenset(venom),
        ),
        slots=dice.randint(1, 4),
        load_s=dice.choice((0.0, 2.0, 12.0)),
        pace=dice.choice(((1.0,), (0.5, 1.0, 3.0))),
        plans=tuple(plans),
        drops=tuple(drops),
        pauses=tuple(dice.uniform(0, 30) for _ in range(kind != "quiet" and dice.random() < 0.2)),
        stalls=tuple(
            (dice.uniform(0, 30), dice.choice((3.0, 40.0, 500.0))) for _ in range(bool(chances) and dice.random() < 0.2)
        ),
        deaths=tuple(sorted(deaths)),
    )
    policy = replace(
        plot.policy,
        recycle_segments=age.choice((0, 0, 0, 1, 6)),
        recycle_s=age.choice((0, 0, 0, 9)),
        recycle_growth_bytes=age.choice((0, 2_000_000_000)),
    )
    flawed = frozenset(age.sample(texts, min(len(texts), 2))) - deadly if deaths else frozenset()
    leak_bytes = age.choice((0, 0, 500_000_000))
    losses = [(age.uniform(0, 40), age.randrange(NODES)) for _ in range(age.randint(1, MOST_LOSSES))]
    if kind == "quiet" or age.random() < 0.6:
        losses = []
    policy = replace(policy, unstored=age.choice((256, 256, 1, 3)))
    baneful = kind in ("poison", "everything") and texts and age.random() < 0.5
    bane = frozenset({age.choice(texts)} if baneful else ()) - deadly - flawed
    faults = replace(plot.faults, flawed=flawed, bane=bane, slow_disk=age.choice((1.0, 1.0, 40.0)))
    return replace(plot, policy=policy, faults=faults, leak_bytes=leak_bytes, losses=tuple(losses))


@dataclass
class Told:
    """What has become of a segment, as an onlooker saw it. ``frames``: how often it was sent to a worker; ``alone``:
    deaths, of a worker that had begun it or of the daemon, while it was out alone, and ``alone_unbegun`` of a worker
    that had not begun it; ``failures``: answers that it failed and may be tried again; ``ends``: how often it ended, in
    any life."""

    frames: int = 0
    alone: int = 0
    alone_unbegun: int = 0
    failures: int = 0
    ends: int = 0
    sent_alone: bool = False
    """The last time that it was."""


@dataclass
class History:
    """The world of a plot, over all lives of its daemon."""

    plot: Plot
    at: float = 0.0
    lives: int = 0
    acts: int = 0
    events: int = 0
    recycles: int = 0
    disk: dict[str, PaperJob] = field(default_factory=dict)
    told: dict[Place, Told] = field(default_factory=dict)
    story: deque[str] = field(default_factory=lambda: deque(maxlen=STORY))

    def __post_init__(self) -> None:
        self.random = random.Random(self.plot.seed + 1)
        self.faults = Faults(**vars(self.plot.faults))
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._deaths = deque(self.plot.deaths)
        self._shell: Shell | None = None
        self._workers = self.plot.plans[0][1]
        self._processes: list[WorkerProcess] = []
        self._pipes: dict[WorkerProcess, float] = {}
        self._texts: dict[str, list[str]] = {}
        self._waiting: set[str] = set()
        self._ledger = FairnessLedger()
        self._doomed = False
        self._may_be_suspected: dict[str, set[int]] = {}
        """By job, after the death of a daemon that was no power cut."""

    # --- the world, as its inhabitants see it ---------------------------------------------------------------

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        self._when(self.at + seconds, action)

    def _when(self, at: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (at, next(self._order), action))

    def odds(self, chance: float) -> bool:
        if chance and self.faults.budget > 0 and self.random.random() < chance:
            self.faults.budget -= 1
            return True
        return False

    def act(self) -> None:
        self.acts += 1
        if self._doomed or (self._deaths and self.acts >= self._deaths[0][0]):
            raise DaemonDied

    def in_this_life(self, action: Callable[[], None]) -> Callable[[], None]:
        life = self.lives

        def if_it_lasts() -> None:
            if self.lives == life and self._shell is not None:
                action()

        return if_it_lasts

    def spawn(self, worker: int, generation: int) -> WorkerProcess:
        process = WorkerProcess(worker, generation, self.plot.slots, self, leak_bytes=self.plot.leak_bytes)
        self._processes.append(process)
        self.later(self.plot.load_s * self.random.uniform(0.5, 1.5), process.load)
        return process

    def tell(self, worker: WorkerProcess, message: wire.Message) -> None:
        """After a little while, but never before what the worker said earlier."""
        at = max(self.at + self.random.choice((0.0, 0.0, 0.01, 0.3)), self._pipes.get(worker, 0.0))
        self._pipes[worker] = at

        def arrive() -> None:
            assert self._shell is not None
            self.note(f"worker {worker.number}.{worker.generation}: {message}")
            self.events += 1
            self._shell.hear(worker, message)

        # Not after ``at - now``, which rounding may bring before a message that was sent at another time.
        self._when(at, self.in_this_life(arrive))

    def sent(self, process: WorkerProcess, dispatch: Dispatch) -> None:
        place = (dispatch.job, dispatch.position)
        self.note(f"to worker {process.number}.{process.generation}: {dispatch}")
        if dispatch.position in self.disk[dispatch.job].final_records():
            raise BrokenPromise(f"{place} is spoken again after it has ended")
        self._seen(place).frames += 1
        self._seen(place).sent_alone = dispatch.alone
        self._ledger.dispatched(dispatch.job, COST_OF_A_SEGMENT + len(self.text(dispatch)))
        self.later(self.random.choice((0.0, 0.02)), lambda: process.take(dispatch))

    def looked_at(self, token: str, position: int) -> None:
        if self._texts[token][position] in self.faults.bane:
            self._seen((token, position)).alone += self._seen((token, position)).sent_alone
            self.poisoned()

    def read_back(self, job: LiveJob) -> None:
        """Nobody is suspected but what was out when the daemon died, or had begun when a worker did. What was delivered
        is not out any more."""
        suspects = {position for position, live in enumerate(job.segments) if live.suspect and live.status == "waiting"}
        if not suspects <= self._may_be_suspected.get(job.token, suspects):
            raise BrokenPromise(f"{suspects} of {job.token} are suspected, {self._may_be_suspected[job.token]} may be")

    def poisoned(self) -> None:
        """What a worker has made is too much for the daemon, which dies before its next act."""
        self._doomed = True

    def failed(self, dispatch: Dispatch) -> None:
        self._seen((dispatch.job, dispatch.position)).failures += 1

    def recycled(self) -> None:
        self.recycles += 1

    def suspected(self, place: Place) -> None:
        if self.plot.quiet:
            raise BrokenPromise(f"{place} is suspected, and nobody has died")

    def text(self, dispatch: Dispatch) -> str:
        return self._texts[dispatch.job][dispatch.position]

    def seconds(self, dispatch: Dispatch) -> float:
        return self.random.choice(self.plot.pace)

    def killed_alone(self, dispatch: Dispatch, *, begun: bool) -> None:
        told = self._seen((dispatch.job, dispatch.position))
        told.alone += begun
        told.alone_unbegun += not begun

    def ended(self, command: SegmentEnded) -> None:
        place = (command.job, command.position)
        self.note(f"ended: {command}")
        told = self._seen(place)
        told.ends += 1
        if told.ends > self.lives:
            raise BrokenPromise(f"{place} ended twice in one life")
        final = self.disk[command.job].final_records().get(command.position, [])
        if [record["t"] for record in final] != (["ok"] if command.outcome == "spoken" else []):
            raise BrokenPromise(f"{place} ends as {command.outcome}, its journal says {final}")
        if command.outcome == "cancelled" and not self._is_cancelled(command.job):
            raise BrokenPromise(f"{place} is cancelled, and nobody asked for it")

    def over(self, token: str) -> None:
        self.note(f"over: {token}")
        self._waiting.discard(token)
        self._ledger.gone(token)

    def note(self, line: str) -> None:
        self.story.append(f"{self.at:9.3f} {line}")

    def _seen(self, place: Place) -> Told:
        return self.told.setdefault(place, Told())

    def _is_cancelled(self, token: str) -> bool:
        assert self._shell is not None
        return self._shell.jobs[token].cancelled

    # --- what happens ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until every job is over and nothing is left to happen; then all that must hold is checked.

        Raises:
            BrokenPromise, ImpossibleTransition: something does not hold.
        """
        for number, drop in enumerate(self.plot.drops):
            self.later(drop.at, partial(self._drop, number, drop))
            if drop.cancelled_at is not None:
                self.later(drop.cancelled_at, partial(self._cancel, drop.job_id))
        for at, count, restart in self.plot.plans[1:]:
            self.later(at, partial(self._plan, count, restart))
        for at in self.plot.pauses:
            self.later(at, lambda: self._shell.pause(5.0) if self._shell is not None else None)
        for at, seconds in self.plot.stalls:
            self.later(at, partial(self._stall, seconds))
        for at, node in self.plot.losses:
            self.later(at, partial(self._lose, node))
        self._guarded(self._begin)
        for _ in range(MOST_STEPS):
            if not self._guarded(self._step):
                self._check_end()
                return
        raise BrokenPromise("the history does not end")

    def _guarded(self, step: Callable[[], bool]) -> bool:
        try:
            return step()
        except DaemonDied:
            self._die()
            return True

    def _begin(self) -> bool:
        self._rise()
        return True

    def _rise(self) -> None:
        self.lives += 1
        self._doomed = False
        self.note(f"life {self.lives}")
        self._ledger = FairnessLedger()
        specs = _specs(self._workers)
        shell = Shell.__new__(Shell)
        # Known before it does anything: its first acts may be its last.
        self._shell = shell
        shell.__init__(self, self.plot.policy, self.plot.seed + self.lives, specs)  # type: ignore[misc]

    def _die(self) -> None:
        power = False
        while self._deaths and self.acts >= self._deaths[0][0]:
            power = self._deaths.popleft()[1] or power
        self.note("the power is cut" if power else "the daemon dies")
        for process in self._processes:
            if process.alive:
                process.alive = False
                for dispatch in [*process.running.values(), *process.queue]:
                    if dispatch.alone:
                        self._seen((dispatch.job, dispatch.position)).alone += 1
        self._processes.clear()
        assert self._shell is not None
        self._remember_suspects(self._shell, power)
        self._shell = None
        self._doomed = False
        if power:
            for paper in self.disk.values():
                paper.power_cut()
        self.later(LIFE_S, self._rise)

    def _remember_suspects(self, shell: Shell, power: bool) -> None:
        """A power cut takes the notes of what was out; the journal then says of more that they have begun."""
        may_be = self._may_be_suspected
        if power:
            may_be.clear()
            return
        out = shell.out() | shell.killers | ({shell.looked_at} if shell.looked_at is not None else set())
        for token, job in shell.jobs.items():
            known = {position for position, live in enumerate(job.segments) if live.suspect}
            may_be[token] = known | {position for other, position in out if other == token}

    def _step(self) -> bool:
        """The next thing that happens; False when there is none."""
        deadline = None if self._shell is None else self._shell.core.next_deadline()
        if self._agenda and (deadline is None or self._agenda[0][0] < deadline):
            at, _, action = heapq.heappop(self._agenda)
            self.at = max(self.at, at)
            action()
            self._check_nobody_idles()
            return True
        if deadline is not None and (self._agenda or self._waiting):
            assert self._shell is not None
            self._beat(deadline)
            if self._shell is not None:
                self.at = max(self.at, deadline)
                self.events += 1
                self._shell.apply(Tick(self.at))
                self._check_nobody_idles()
            return True
        return False

    def _beat(self, deadline: float) -> None:
        """Everyone who lives has said so just before the deadline."""
        assert self._shell is not None
        self.at = max(self.at, deadline - 0.001)
        for process in list(self._processes):
            if process.acts and not process.told_gone:
                self.events += 1
                self._shell.hear(process, wire.Beat(process.resident_bytes))
        self._processes = [process for process in self._processes if not process.told_gone]

    def _stall(self, seconds: float) -> None:
        """The daemon stands still: nothing is read meanwhile, and the first thing after it may be a late look at the
        clock."""
        self.note(f"the daemon stands still for {seconds:g} s")
        self.at += seconds
        if self._shell is not None and self.random.random() < 0.5:
            self._shell.apply(Tick(self.at))

    def _lose(self, node: int) -> None:
        self.note(f"node {node} is lost")
        for process in list(self._processes):
            if process.number % NODES == node:
                process.end("its node is lost", lost=True)

    def _drop(self, number: int, drop: Drop) -> None:
        token = f"{number:03d}"
        body = document(drop.job_id, drop.priority, list(drop.speakers), list(drop.texts)) if drop.texts else None
        if body is None:
            return  # no job without segments gets past the parser
        self.note(f"dropped: {drop.job_id} as {token}, {len(drop.texts)} segments")
        self._texts[token] = list(drop.texts)
        self._waiting.add(token)
        paper = self.disk[token] = PaperJob(token, drop.job_id, body)
        if self._shell is not None:
            self._shell.take(paper)

    def _cancel(self, job_id: str) -> None:
        self.note(f"cancel: {job_id}")
        if self._shell is not None:
            self._shell.cancel(job_id)

    def _plan(self, count: int, restart: bool) -> None:
        self.note(f"planned: {count} workers{', all anew' if restart else ''}")
        self._workers = count
        if self._shell is not None:
            self._shell.plan(_specs(count), restart=restart)

    # --- what must hold -------------------------------------------------------------------------------------

    def _check_nobody_idles(self) -> None:
        """From outside: no ready worker holds nothing while a segment waits that it could speak. And fairness."""
        shell = self._shell
        if shell is None or shell.core.held:
            return
        core = shell.core
        waiting = {token: core.job_view(token) for token in self._arrived_jobs(shell)}
        if any(view.waiting for view in waiting.values()):
            idle = [view.worker for view in core.worker_views() if view.state == "ready"]
            if idle:
                raise BrokenPromise(f"workers {idle} idle while work waits: {waiting}")
        if self.plot.quiet:
            self._ledger.check({token: view.waiting for token, view in waiting.items()}, shell)

    @staticmethod
    def _arrived_jobs(shell: Shell) -> list[str]:
        return [token for token in shell.jobs if token in shell.core._jobs]

    def _check_end(self) -> None:
        for number, drop in enumerate(self.plot.drops):
            if not drop.texts:
                continue
            token = f"{number:03d}"
            paper = self.disk[token]
            if not paper.over:
                raise BrokenPromise(f"job {token} is not over, and nothing is left to happen")
            final = paper.final_records()
            if set(final) != set(range(len(drop.texts))) or any(len(records) != 1 for records in final.values()):
                odd = {
                    p: [r["t"] for r in final.get(p, [])] for p in range(len(drop.texts)) if len(final.get(p, [])) != 1
                }
                raise BrokenPromise(f"not every segment of {token} has ended exactly once: {odd}")
            for position, records in final.items():
                self._check_segment(token, drop, position, records[0])

    def _check_segment(self, token: str, drop: Drop, position: int, record: dict[str, object]) -> None:
        place = (token, position)
        told = self.told.get(place, Told())
        text = drop.texts[position]
        began = sum(r["t"] == "began" and r["p"] == position for r in self.disk[token].written)
        attempts = record["attempts"]
        assert isinstance(attempts, int)
        if not began <= max(attempts, 1) or attempts > max(told.frames, 1):
            raise BrokenPromise(f"{place}: {attempts} attempts, {began} begun, {told.frames} frames: {record}")
        if told.alone > self.plot.policy.tries:
            raise BrokenPromise(f"{place} was tried {told.alone} times alone")
        # The death of a daemon may come before the try is on its disk: one more for each life.
        if told.failures > self.plot.policy.tries + self.lives - 1:
            raise BrokenPromise(f"{place} failed {told.failures} times in {self.lives} lives")
        deadly = text in self.plot.faults.poison | self.plot.faults.venom | self.plot.faults.bane
        outcome = record["t"]
        flawed = text in self.plot.faults.flawed
        if flawed and outcome == "ok":
            raise BrokenPromise(f"{place} fails whenever it is spoken, and is spoken")
        cancellable = any(d.cancelled_at is not None and d.job_id == drop.job_id for d in self.plot.drops)
        if outcome == "cancelled" and not cancellable:
            raise BrokenPromise(f"{place} was cancelled, and nobody asked for it")
        if deadly and outcome == "ok":
            raise BrokenPromise(f"{place} kills whoever speaks it, and is spoken")
        if deadly and outcome == "failed" and record["code"] != "worker_died" and not self.plot.faults.budget:
            raise BrokenPromise(f"{place} failed as {record['code']}")
        charged = self.plot.faults.budget or self.plot.deaths
        if not deadly and not flawed and not charged and outcome not in ("ok", "cancelled"):
            raise BrokenPromise(f"{place} pays for its neighbours: {record}")
        # A daemon may also die while it looks at what a worker has made, which counts and is not seen from here.
        if record.get("code") == "worker_died" and not told.alone + told.alone_unbegun and not self.plot.deaths:
            raise BrokenPromise(f"{place} failed as worker_died, and nobody has died of it alone")


class FairnessLedger:
    """What was dispatched for each job while others of its priority waited too. Two jobs may be apart by LAG_SEGMENTS
    + 1 of the larger one's costliest segments; counted from a moment when they were apart as far as that one way, they
    may come to be twice as far apart."""

    def __init__(self) -> None:
        self._spent: Counter[str] = Counter()
        self._since: dict[tuple[str, str], float] = {}

    def dispatched(self, token: str, cost: float) -> None:
        self._spent[token] += cost  # type: ignore[assignment]  # a Counter of floats

    def gone(self, token: str) -> None:
        self._since = {pair: start for pair, start in self._since.items() if token not in pair}

    def check(self, waiting: dict[str, int], shell: Shell) -> None:
        both = [token for token, count in waiting.items() if count]
        pairs = set()
        for one, other in itertools.combinations(both, 2):
            jobs = (shell.core._jobs[one], shell.core._jobs[other])
            if jobs[0].priority != jobs[1].priority:
                continue
            pair = (one, other)
            pairs.add(pair)
            apart = self._spent[one] - self._spent[other]
            start = self._since.setdefault(pair, apart)
            bound = 2 * (LAG_SEGMENTS + 1) * max(job.costliest for job in jobs)
            if abs(apart - start) > bound:
                raise BrokenPromise(f"jobs {one} and {other} are {abs(apart - start):g} apart; {bound:g} is the bound")
        self._since = {pair: start for pair, start in self._since.items() if pair in pairs}


def _specs(count: int) -> tuple[WorkerSpec, ...]:
    return tuple(WorkerSpec(worker, worker) for worker in range(count))
