"""The question that a plan answers, and the checks that it can be answered."""

import math
from dataclasses import dataclass

from planner.cards import Card, cards, serves
from planner.errors import PlanError
from planner.memory import Layout
from planner.model import Model
from planner.traffic import Traffic
from workers.model.config import ModelConfigError


@dataclass(frozen=True, slots=True)
class Question:
    """A question to the planner.

    network: bytes/s that one card sends to other workers. prompt: tokens of the example prompt. traffic: None to leave
    the pools' sizes out.
    """

    model: Model
    card: Card
    layout: Layout
    network: float
    prompt: int
    traffic: Traffic | None = None


def check(question: Question) -> None:
    """Raise PlanError, which names the flag at fault, if the question can't be answered."""
    model, card, layout, traffic = question.model, question.card, question.layout, question.traffic
    try:
        model.config.check_tp(layout.tp)
    except ModelConfigError as error:
        raise PlanError(f"--gpus-per-worker: {error}") from None
    if not serves(card, model.weights):
        able = ", ".join(name for name, other in cards().items() if other.fp8)
        raise PlanError(
            f"--gpu: {card.name} has no 8-bit floats, so it can't serve FP8 weights: plan --dtype bf16 or int4 on it, "
            f"or FP8 on one of {able}"
        )
    if layout.mtp and not model.has_mtp:
        reason = "INT4 releases leave it out" if model.mtp_layers else "its config has none"
        raise PlanError(f"--mtp: {model.name} in {model.weights} has no MTP layer to load: {reason}")
    if layout.context > 2 * model.config.max_model_len:
        raise PlanError(
            f"--context: {layout.context} is more than twice the checkpoint's {model.config.max_model_len}; "
            "YaRN doubles it at most"
        )
    if layout.host_bytes and layout.kept_states == 0:
        raise PlanError(
            "--host-gb: copies in host memory are made of states kept on the device: keep some, with "
            "--kept-states above 0"
        )
    if layout.mean_length > layout.context:
        raise PlanError(f"--mean-length: {layout.mean_length} exceeds --context {layout.context}")
    if not (math.isfinite(question.network) and question.network > 0):
        raise PlanError(f"--network: must be above 0 GB/s, got {question.network / 1e9}")
    if question.prompt > layout.context:
        raise PlanError(f"--prompt-tokens: {question.prompt} exceeds --context {layout.context}")
    if traffic is None:
        return
    if not (math.isfinite(traffic.requests_per_s) and traffic.requests_per_s > 0):
        raise PlanError(f"--requests-per-s: must be above 0, got {traffic.requests_per_s}")
    if not 0 <= traffic.hit_rate <= 1:
        raise PlanError(f"--hit-rate: is a share from 0 to 1, got {traffic.hit_rate}")
    if (longest := traffic.prompt_tokens + traffic.output_tokens) > layout.context:
        raise PlanError(f"--output-tokens: prompt and output make {longest}, more than --context {layout.context}")
