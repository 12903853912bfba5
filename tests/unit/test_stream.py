"""Streams: the three protocols, their figures, the curve and the command."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from fakes import RuleModel

from reflect.cli import main
from reflect.config import Settings
from reflect.errors import UsageError
from reflect.evaluation.arms import ArmResult
from reflect.stream.curve import draw
from reflect.stream.protocols import (
    Practice,
    Protocol,
    ProtocolOptions,
    Stage,
    Stream,
    StreamReport,
    schedule,
)


def arm(*rewards: float) -> ArmResult:
    return ArmResult(sum(rewards) / len(rewards), len(rewards), (0.0, 1.0), list(rewards))


class RuleStream(Stream):
    """A stream with a scripted model, which has no weights."""

    def agent(self, protocol, number):
        workspace = super().agent(protocol, number)
        vars(workspace.context)["model"] = RuleModel()
        return workspace


def play(tmp_path, protocol: str, **options) -> StreamReport:
    settings = Settings(db=str(tmp_path / f"{protocol}.db"), home=str(tmp_path), n=8, k=4)
    chosen = ProtocolOptions(**({"n": 8, "k": 4, "exam": 12, "nights": False} | options))
    return RuleStream(settings, ["dialect:1", "dialect:2"], Protocol(protocol), chosen, None).run()


def test_every_taskset_gets_the_same_number_of_tasks_in_each_protocol() -> None:
    options = ProtocolOptions(n=10, k=2, seed=3)
    for protocol in Protocol:
        stages = schedule(protocol, 3, options)
        assert len(stages) == 3, "as many nights in each"
        totals = [sum(p.n for stage in stages for p in stage if p.taskset == i) for i in range(3)]
        assert totals == [10, 10, 10]
    assert schedule(Protocol.SEQUENTIAL, 2, options) == [[Practice(0, 10, 3)], [Practice(1, 10, 3)]]
    assert len(schedule(Protocol.INTERLEAVED, 3, ProtocolOptions(n=2, k=1))) == 2


def test_a_scripted_agent_learns_both_dialects_and_keeps_the_first(tmp_path) -> None:
    report = play(tmp_path, "sequential")
    figures = report.figures()
    assert report.tasksets == ["dialect", "dialect:2"]
    assert figures["plasticity"][0] > 0.3
    assert figures["forgetting"][0] == figures["forgetting_first"][0] <= 0
    assert figures["generalisation"][0] > 0.3
    assert report.second_pass[0].n == 8
    assert report.stages[0].exam[1].reward == report.base[1].reward, "not yet practised"
    ET.fromstring(draw(report))


def test_an_isolated_agent_knows_its_own_taskset_only(tmp_path) -> None:
    report = play(tmp_path, "isolated")
    assert [stage.agent for stage in report.stages] == [0, 1]
    assert report.stages[1].exam[0].reward == report.base[0].reward
    assert report.stages[1].exam[1].reward > report.base[1].reward
    assert report.figures()["forgetting"] is None


def test_sequential_and_isolated_begin_alike(tmp_path) -> None:
    one, other = play(tmp_path, "sequential"), play(tmp_path, "isolated")
    assert one.stages[0].online == other.stages[0].online
    assert one.stages[0].exam == other.stages[0].exam


def test_an_interleaved_stage_practises_every_taskset(tmp_path) -> None:
    report = play(tmp_path, "interleaved")
    assert [stage.practised for stage in report.stages] == [[0, 1], [0, 1]]
    assert report.figures()["forgetting"] is None
    assert report.figures()["generalisation"][0] > 0.3


def test_the_figures_of_a_stream_by_hand() -> None:
    report = StreamReport(Protocol.SEQUENTIAL, ["a", "b"], ProtocolOptions(n=1, k=1))
    report.base = [arm(0, 0), arm(0, 1)]
    report.stages = [
        Stage(0, [0], [0.5], "", [arm(1, 1), arm(1, 1)]),
        Stage(0, [1], [0.5], "", [arm(1, 0), arm(1, 1)]),
    ]
    report.first_pass = {0: arm(1, 1), 1: arm(1, 1)}
    report.second_pass = {0: arm(0, 1), 1: arm(1, 1)}
    means = {name: value and value[0] for name, value in report.figures().items()}
    assert means == {
        "plasticity": 0.75,
        "forgetting": 0.5,
        "forgetting_first": 0.5,
        "stability": -0.25,
        "generalisation": 0.5,
        "forward_transfer": 0.5,
    }
    assert report.shape()["figures"]["forgetting"][0] == 0.5
    assert draw(report).count("<polyline") == 2


def test_names_in_a_curve_are_no_markup() -> None:
    report = StreamReport(Protocol.SEQUENTIAL, ["<b>&", "b"], ProtocolOptions(n=1, k=1))
    report.base = [arm(0), arm(0)]
    report.stages = [Stage(0, [0], [0.0], "", [arm(1), arm(1)])]
    assert "&lt;b&gt;&amp;" in draw(report)


@pytest.mark.parametrize(
    "names", [["dialect:1"], ["dialect:1", "dialect:1"], ["letters", "letters"]]
)
def test_a_stream_needs_two_different_tasksets(tmp_path, names) -> None:
    settings = Settings(db=str(tmp_path / "x.db"), home=str(tmp_path))
    with pytest.raises(UsageError, match="at least two tasksets, each one once"):
        Stream(settings, names, Protocol.SEQUENTIAL, ProtocolOptions(n=1, k=1), None)


def test_what_cannot_end_well_is_refused_before_any_work(tmp_path, capsys) -> None:
    settings = Settings(db=str(tmp_path / "x.db"), home=str(tmp_path), model="openai:x")
    with pytest.raises(UsageError, match="openai:x has none here") as error:
        Stream(settings, ["letters", "dialect"], Protocol.SEQUENTIAL, ProtocolOptions(1, 1), None)
    assert error.value.hint == "Use --no-nights."
    with pytest.raises(SystemExit, match="2"):
        main(["stream", "letters", "dialect", "--svg", str(tmp_path / "no" / "x.svg")])
    assert "There is no folder" in capsys.readouterr().err


def test_a_stream_does_not_continue_in_a_used_database(tmp_path) -> None:
    play(tmp_path, "sequential")
    with pytest.raises(UsageError, match="lessons of an earlier stream"):
        play(tmp_path, "sequential")
