"""Tests which workers get copies of long answers' states."""

import dataclasses

from msgspec import structs

from router.relay.copies import peer_for
from router.relay.costs import Costs
from router.relay.fleet import WorkerState, fleet_of
from tests.router.test_policy import worker


def chosen(*table: WorkerState, tokens: int = 100, before: str | None = None) -> str | None:
    peer = peer_for(fleet_of(table, Costs()), table[0].info, tokens, before)
    return peer.worker_id if peer is not None else None


def on(node: str, state: WorkerState) -> WorkerState:
    return dataclasses.replace(state, info=structs.replace(state.info, node=node))


def test_copies_prefer_the_previous_worker_then_another_node_then_the_emptiest() -> None:
    owner, near = worker("d0", "decode"), worker("d1", "decode")
    far = on("far", worker("p0", "prefill", free_slots=5))
    assert chosen(owner) is None
    assert chosen(owner, near, worker("d2", "decode", free_slots=5)) == "d1"
    assert chosen(owner, near, far) == "p0"
    assert chosen(owner, near, far, before="d1") == "d1"


def test_no_copy_is_made_at_a_worker_that_can_not_take_it() -> None:
    owner = worker("d0", "decode")
    assert chosen(owner, worker("d1", "decode", layout="other")) is None
    assert chosen(owner, worker("d1", "decode", weights="other")) is None
    assert chosen(owner, worker("d1", "decode", max_model_len=100)) is None
    assert chosen(owner, worker("d1", "decode", free_slots=2)) is None
    assert chosen(owner, worker("d1", "decode", unreachable=("d0",))) is None
