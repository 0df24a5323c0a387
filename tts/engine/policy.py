"""The policy: decodes branches of many problems in one ragged batch, on paged KV that forks for free.

A pass of `step`: rows that wait get the KV of their parents (prefill), all rows are forwarded together, every row draws one
token, rows that ended become nodes. All children of a node are drawn from one row of logits, that of the node's last token.
"""

from __future__ import annotations

import bisect
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from tts.engine import batch
from tts.engine.cache import HiddenStates, Prefill, TreeCache
from tts.engine.draws import Draws
from tts.engine.graphs import Capture, Graphs
from tts.engine.model import Model
from tts.engine.openings import Openings
from tts.engine.rows import Row, Rows
from tts.engine.session import Session, Ticket
from tts.engine.stems import Stems
from tts.moves import Embed, Expand, Tokens
from tts.tree import Node, Prompt
from tts_kernels.pages import OutOfPages


@dataclass(eq=False, slots=True)
class Group:
    """What waits for one node to be ready: rows to be drawn from it, and requests for its hidden state."""

    age: int
    session: Session
    parent: Node
    rows: list[Row]
    embeds: list[tuple[Ticket, int]] = field(default_factory=list)

    @property
    def goes_on(self) -> bool:
        """Whether its rows have tokens, forced or drawn before they were preempted, and go on from those."""
        return bool(self.rows and self.rows[0].tokens)


@dataclass(eq=False, slots=True)
class Job:
    """A prefill in flight, for the parent of a group or for the tokens that a row already has."""

    age: int
    session: Session
    prefill: Prefill
    row: Row | None = None


class Policy:
    """The local engine: answers `Expand` and `Embed` with a model on this machine.

    `max_rows` branches are decoded at a time, `max_batch_tokens` is the budget of one forward pass. Results do not depend on
    either, nor on the size of the pool: rows that find no page are preempted, their KV dropped and filled again. With `capture`
    passes of decode rows alone are captured and replayed (`tts.engine.graphs`).
    """

    def __init__(
        self,
        model: Model,
        num_pages: int,
        page_size: int = 16,
        max_rows: int = 1024,
        max_batch_tokens: int = 2048,
        capture: Capture | None = None,
    ):
        if max_rows < 1 or max_batch_tokens < max_rows:
            raise ValueError(f"need 1 <= max_rows <= max_batch_tokens, got {max_rows=} {max_batch_tokens=}")
        self.model, self.max_batch_tokens = model, max_batch_tokens
        self.kv = model.make_kv(num_pages, page_size)
        self.graphs = Graphs(model, self.kv, capture) if capture is not None else None
        hidden = HiddenStates(model.config.hidden_size, model.dtype, model.device)
        self.stems = Stems()
        self.cache = TreeCache(self.kv, self.stems.tokens, hidden, self.stems.above)
        self.rows = Rows(max_rows)
        self.draws = Draws(model, self.rows)
        self.openings = Openings(model, self.cache, self.stems, self.draws.stops)
        self.seconds, self.num_passes, self.num_preemptions = 0.0, 0, 0
        self._groups: list[Group] = []  # by age
        self._jobs: list[Job] = []  # by age
        self._num_expansions = 0
        self._finished: list[Ticket] = []

    # ---- what the search asks for

    @property
    def has_work(self) -> bool:
        return bool(len(self.rows) or self._groups or self._jobs or self._finished)

    @property
    def num_unfinished_rows(self) -> int:
        return len(self.rows) + sum(len(g.rows) for g in self._groups) + sum(j.row is not None for j in self._jobs)

    def check(self, session: Session, prompt: Prompt) -> None:
        """Raise `ValueError` where a problem cannot be run: prompt and longest answer must fit the model and the pool."""
        num_prompt = len(self.openings.encode(session, prompt))
        self.model.check_fits(self.kv, num_prompt, session.max_tokens, f"problem {session.id!r}")

    def expand(self, session: Session, move: Expand) -> Ticket:
        """Start the move; its ticket comes back from a later `step`."""
        widths = move.widths
        if isinstance(move.until, Tokens) and move.until.count == 0:
            return self._expand_empty(session, move)
        recipe = self.openings.recipe(session, move)
        ticket = Ticket(session, [None] * sum(widths), sum(widths))
        index = 0
        for source, width in zip(move.nodes, widths):
            if not width:
                continue
            is_new = isinstance(source, Prompt) and source not in session.roots
            parent = self.openings.node(session, source)
            if parent.is_done and not move.prefix:
                raise ValueError(f"Expand: {parent} has ended ({parent.end}); only a prefix can continue it")
            rows = [self.openings.row(ticket, index + i, self._num_expansions, parent, recipe) for i in range(width)]
            index += width
            if rows[0].limit <= len(recipe.forced):
                for row in rows:
                    self._end_without_room(row)
                continue
            session.meter.reused_tokens += (width - is_new) * parent.num_path_tokens
            session.meter.charge_prompt(self.model, width * len(recipe.forced))
            self._wait(Group(self._num_expansions, session, parent, rows))
        self._num_expansions += 1
        return self._opened(ticket)

    def _expand_empty(self, session: Session, move: Expand) -> Ticket:
        """Children without tokens: nothing is drawn and nothing charged but a prompt that is new."""
        ticket = Ticket(session, [], 0)
        for source, width in zip(move.nodes, move.widths):
            parent = self.openings.node(session, source)
            ticket.nodes += [Node(parent, (), b"", "cut", parent.key, parent.prompt) for _ in range(width)]
        ticket.results += ticket.nodes
        session.nodes += ticket.nodes
        return self._opened(ticket)

    def embed(self, session: Session, move: Embed) -> Ticket:
        """Start the move; its results are float32[E] arrays."""
        ticket = Ticket(session, [None] * len(move.nodes), len(move.nodes))
        for index, source in enumerate(move.nodes):
            self._wait(Group(self._num_expansions, session, self.openings.node(session, source), [], [(ticket, index)]))
        self._num_expansions += 1
        return self._opened(ticket)

    def drop(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            self.cache.drop(node)

    def num_in_flight(self) -> Counter[Ticket]:
        """Tokens drawn so far for rows that have not ended, by ticket."""
        drawn: Counter[Ticket] = Counter()
        for slot in self.rows.active.tolist():
            drawn[self.rows.held[slot].ticket] += int(self.rows.count[slot]) - len(self.rows.held[slot].recipe.forced)
        waiting = [row for group in self._groups for row in group.rows] + [job.row for job in self._jobs if job.row]
        for row in waiting:
            drawn[row.ticket] += len(row.tokens) - len(row.recipe.forced)
        return drawn

    def cancel(self, ticket: Ticket) -> int:
        """Stop a move in progress and give its rows' pages back; gives the tokens drawn for it, all of which are charged."""
        in_flight = self.num_in_flight()[ticket]
        ticket.session.meter.charge_drawn(self.model, in_flight)
        self._finished = [t for t in self._finished if t is not ticket]
        for group in self._groups:
            group.rows = [row for row in group.rows if row.ticket is not ticket]
            group.embeds = [(t, i) for t, i in group.embeds if t is not ticket]
        self._groups = [group for group in self._groups if group.rows or group.embeds]
        for job in [j for j in self._jobs if j.row is not None and j.row.ticket is ticket]:
            self._abort(job)
        self._release_rows([s for s in self.rows.active.tolist() if self.rows.held[s].ticket is ticket])
        return ticket.num_drawn + in_flight

    def forget(self, nodes: Iterable[Node]) -> None:
        """Release the KV of nodes that will not be asked for again."""
        self.cache.forget(nodes)

    def flops(self, num_tokens: int) -> float:
        """Nominal FLOPs of reading or drawing so many tokens: 2 x active parameters each."""
        return self.model.flops_per_token * num_tokens

    def close(self, session: Session) -> None:
        """Stop what the session has in flight and give all of its pages back."""
        self._finished = [t for t in self._finished if t.session is not session]
        self._groups = [g for g in self._groups if g.session is not session]
        for job in [j for j in self._jobs if j.session is session]:
            self._abort(job)
        self._release_rows([s for s in self.rows.active.tolist() if self.rows.held[s].ticket.session is session])
        self.cache.forget([*session.stems, *session.all_nodes])
        self.stems.forget([*session.stems, *session.roots.values()])

    def _release_rows(self, slots: list[int]) -> None:
        for slot in slots:
            self.kv.release(int(self.rows.leaf[slot]))
        self.rows.leave(slots)

    def step(self) -> list[Ticket]:
        """One forward pass and one draw for every row; gives the tickets that are complete."""
        started = time.perf_counter()
        self._schedule()
        hidden, resumed = self._forward()
        self._draw(hidden, resumed)
        self.seconds += time.perf_counter() - started
        finished, self._finished = self._finished, []
        return finished

    def _wait(self, group: Group) -> None:
        bisect.insort(self._groups, group, key=lambda g: g.age)

    def _opened(self, ticket: Ticket) -> Ticket:
        if ticket.num_left == 0:
            self._finished.append(ticket)
        return ticket

    # ---- one pass

    def _schedule(self) -> None:
        """Start the prefills that the oldest groups wait for, as many as a pass can use."""
        if not self._groups:
            return
        budget = self.max_batch_tokens - sum(j.prefill.num_left for j in self._jobs) - len(self.rows)
        room = self.rows.num_free - sum(j.row is not None for j in self._jobs)
        wanted: list[Group] = []
        for group in list(self._groups):
            if budget <= 0 or room <= 0:
                break
            parent = self.cache.solid(group.parent)
            room -= len(group.rows)
            if group.goes_on and self.cache.is_complete(parent):
                budget -= self._resume(group, parent, len(group.rows) + min(room, 0))
            elif not self.cache.is_ready(parent):
                wanted.append(group)
        if wanted and budget > 0:
            parents = [self.cache.solid(group.parent) for group in wanted]
            for group, prefill in zip(wanted, self.cache.begin(parents, budget)):
                if prefill is not None:
                    self._start(Job(group.age, group.session, prefill))

    def _resume(self, group: Group, parent: Node, count: int) -> int:
        """Start the prefill of the tokens that the group's first `count` rows already have; gives their number."""
        rows, group.rows = group.rows[:count], group.rows[count:]
        for row, kv_node in zip(rows, self.cache.fork([parent] * len(rows)).tolist()):
            prefill = Prefill(kv_node, np.array(row.tokens, np.int64), row.parent.num_path_tokens)
            self._start(Job(group.age, group.session, prefill, row))
        if not group.rows:
            self._groups.remove(group)
        return sum(len(row.tokens) for row in rows)

    def _start(self, job: Job) -> None:
        bisect.insort(self._jobs, job, key=lambda j: j.age)

    def _forward(self) -> tuple[torch.Tensor | None, list[tuple[Row, int, torch.Tensor]]]:
        """Forward all rows and a budget of prefills; gives the rows' states, and (row, KV node, state) of rows that came back."""
        sizes = self._make_room()
        active = self.rows.active
        prefills = [job.prefill for job in self._jobs]
        if not len(active) and not sum(sizes):
            return None, []
        rows = self.rows.leaf[active], self.rows.last[active], self.rows.position[active] - 1
        hidden = batch.forward(self.model, self.kv, *rows, prefills, sizes, self.graphs)
        self.num_passes += 1
        resumed = []
        parents: list[tuple[Node, int]] = []
        end = len(active)
        for job, size in zip(list(self._jobs), sizes):
            end += size
            if job.prefill.num_left:
                continue
            self._jobs.remove(job)
            if job.row is None:
                job.session.meter.charge_again(self.model, self.cache.finish(job.prefill))
                parents.append((job.prefill.nodes[-1], end - 1))
            else:
                # Its forced tokens are new, and so is the last one it drew; the others were read before.
                again = max(0, len(job.row.tokens) - len(job.row.recipe.forced) - 1)
                job.session.meter.charge_again(self.model, again)
                resumed.append((job.row, job.prefill.kv_node, hidden[end - 1]))
        if parents:
            self.cache.hidden.keep([node for node, _ in parents], hidden[[row for _, row in parents]])
        return hidden[: len(active)], resumed

    def _make_room(self) -> list[int]:
        """Chunk sizes for which the pages suffice: evict what is only cached, then hold back and preempt the youngest."""
        while True:
            prefills = [job.prefill for job in self._jobs]
            sizes = batch.chunk_sizes(prefills, self.max_batch_tokens - len(self.rows))
            needed = batch.pages_needed(self.kv, self.rows.leaf[self.rows.active], prefills, sizes)
            if self.cache.evict(needed):
                return sizes
            if len(self.rows) + len(self._jobs) > 1:
                self._preempt_youngest()
            elif self.kv.num_used_pages:
                # The last one: its branch may be scattered over half-filled pages; filled again, it is compact.
                self._preempt_youngest()
                self.cache.evict(self.kv.num_pages)
                self._schedule()
            else:
                raise OutOfPages(needed, self.kv.num_free_pages, self.kv.num_pages)

    def _preempt_youngest(self) -> None:
        held = self.rows.held
        youngest = max(self.rows.active.tolist(), key=lambda slot: (held[slot].age, held[slot].index), default=-1)
        if self._jobs and (youngest < 0 or self._jobs[-1].age >= held[youngest].age):
            job = self._jobs[-1]
            self._abort(job)
            job.session.meter.charge_again(self.model, job.prefill.num_done)
            if job.row is not None:
                self._wait(Group(job.age, job.session, job.row.parent, [job.row]))
        else:
            self.kv.release(int(self.rows.leaf[youngest]))
            (row,) = self.rows.leave([youngest])
            self._wait(Group(row.age, row.ticket.session, row.parent, [row]))
        self.num_preemptions += 1

    def _abort(self, job: Job) -> None:
        self._jobs.remove(job)
        self.cache.abort(job.prefill)

    # ---- drawing

    def _draw(self, hidden: torch.Tensor | None, resumed: list[tuple[Row, int, torch.Tensor]]) -> None:
        """One token for every row: those forwarded, those that came back, and the children of nodes that are ready."""
        active = self.rows.active
        num_entering = len(resumed) + sum(job.row is not None for job in self._jobs)
        ready = self._take_ready(self.rows.num_free - num_entering)
        if resumed or ready:
            states, source, slots = self._entered(hidden, resumed, ready)
        elif hidden is not None and len(active):
            states, source, slots = hidden, np.arange(len(active), dtype=np.int32), active
        else:
            return
        self.draws.sample(states, source, slots)
        if ended := self.draws.ended(slots):
            ending = [slot for slot, _ in ended]
            kv_nodes = self.rows.leaf[ending].tolist()
            for row, kv_node, (_, end) in zip(self.rows.leave(ending), kv_nodes, ended):
                self._finish(row, kv_node, end)

    def _entered(
        self,
        hidden: torch.Tensor | None,
        resumed: list[tuple[Row, int, torch.Tensor]],
        ready: list[tuple[Node, list[Row]]],
    ) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
        """Give slots to rows that came back and to children of nodes that are ready.

        States T[R, E], and for each row of the batch, new ones behind the others, the one that it draws from and its slot.
        """
        active = self.rows.active
        fresh, leaves = [row for row, *_ in resumed], [np.array([kv_node for _, kv_node, _ in resumed], np.int32)]
        states = ([] if hidden is None else [hidden]) + [state[None] for *_, state in resumed]
        source = list(range(len(active) + len(resumed)))
        if ready:
            parents = [self.cache.solid(parent) for parent, _ in ready]
            states.append(self.cache.hidden.read(parents))
            first = len(source)
            source += [first + i for i, (_, rows) in enumerate(ready) for _ in rows]
            leaves.append(self.cache.fork([p for p, (_, rows) in zip(parents, ready) for _ in rows]))
            fresh += [row for _, rows in ready for row in rows]
        slots = np.concatenate([active, self.rows.enter(fresh, np.concatenate(leaves))])
        return torch.cat(states), np.array(source, np.int32), slots

    def _take_ready(self, room: int) -> list[tuple[Node, list[Row]]]:
        """Take rows from the groups whose parents are ready, oldest first, at most `room`; by parent."""
        taken = []
        for group in list(self._groups):
            if room <= 0:
                break
            parent = self.cache.solid(group.parent)
            if group.goes_on or not self.cache.is_ready(parent):
                continue
            for ticket, index in group.embeds:
                self._put(ticket, index, self.cache.hidden.read([parent])[0].float().cpu().numpy())
            rows, group.rows, group.embeds = group.rows[:room], group.rows[room:], []
            room -= len(rows)
            if rows:
                taken.append((group.parent, rows))
            if not group.rows:
                self._groups.remove(group)
        return taken

    def _finish(self, row: Row, kv_node: int, end: str) -> None:
        """Turn an ended row into its chain of nodes, and enter their KV."""
        session, chain = row.ticket.session, self.draws.nodes(row, end)
        self.cache.enter_chain(chain, kv_node)
        drawn = len(row.tokens) - len(row.recipe.forced)
        session.nodes += chain
        row.ticket.nodes += chain
        row.ticket.num_drawn += drawn
        session.meter.charge_drawn(self.model, drawn)
        self._put(row.ticket, row.index, chain[-1])

    def _end_without_room(self, row: Row) -> None:
        """No token of the answer's ceiling is left to draw: a node without tokens, which costs nothing."""
        node = Node(row.parent, (), b"", "length", row.key, row.parent.prompt)
        row.ticket.session.nodes.append(node)
        row.ticket.nodes.append(node)
        row.ticket.put(row.index, node)

    def _put(self, ticket: Ticket, index: int, result: object) -> None:
        if ticket.put(index, result):
            self._finished.append(ticket)
