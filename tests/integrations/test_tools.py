"""The typed tools: what they offer, what they change, what they refuse."""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import BaseTool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    RootModel,
    create_model,
    field_serializer,
    model_serializer,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypeAliasType, TypedDict

from agent_memory import (
    AgentMemory,
    InvalidRequestError,
    NoRequestContextError,
    RequestContext,
    UnavailableError,
    item_id,
)
from agent_memory_langchain import Agent, memory_tools, render_memory, searching
from agent_memory_langchain.reading import safe_fields
from tests.support.agents import Athlete, Injury, Session
from tests.support.models import Between, Camel, Measured

BOB = {"configurable": {"user_id": "bob"}}


@pytest.fixture
def memory() -> Iterator[AgentMemory]:
    with AgentMemory("memory://", application="fitness") as memory:
        yield memory


def named(memory: AgentMemory, **more: Any) -> dict[str, BaseTool]:
    options: dict[str, Any] = {"documents": [Athlete], "collections": [Session], "entity": ("user", "user_id"), **more}
    return {tool.name: tool for tool in memory_tools(memory, **options)}


def call(tool: BaseTool, arguments: dict[str, Any] | None = None, config: Any = BOB) -> Any:
    """Call a tool as an agent does, and return its message."""
    sent = {"type": "tool_call", "name": tool.name, "args": arguments or {}, "id": "call-1"}
    return tool.invoke(sent, config)


def athlete(memory: AgentMemory, id: str = "bob") -> Athlete | None:
    return memory.entity("user", id).document(Athlete).get()


def properties(tool: BaseTool) -> dict[str, Any]:
    return tool.args


# -- what is offered -------------------------------------------------------------------------------------------------


def test_the_tools_are_named_after_the_models(memory: AgentMemory) -> None:
    assert list(named(memory)) == [
        "read_athlete", "update_athlete", "add_to_athlete", "remove_from_athlete", "forget_athlete",
        "add_session", "list_sessions", "search_sessions", "update_session", "forget_session",
    ]  # fmt: skip


def test_models_can_be_given_other_names(memory: AgentMemory) -> None:
    tools = named(memory, documents={"runner": Athlete}, collections={"diary": Session})
    assert {"update_runner", "add_diary", "list_diaries"} <= set(tools)
    call(tools["update_runner"], {"steps": 3})
    assert memory.entity("user", "bob").document(Athlete, name="runner").get() == Athlete(steps=3)


def test_the_arguments_of_an_update_are_the_models_fields_all_optional(memory: AgentMemory) -> None:
    tool = named(memory)["update_athlete"]
    assert tool.tool_call_schema.get("required", []) == []  # type: ignore[union-attr]
    assert properties(tool)["weight_kg"] == {
        "anyOf": [{"exclusiveMinimum": 0, "maximum": 500, "type": "number"}, {"type": "null"}],
        "description": "body weight in kg",
    }


def test_no_tool_has_an_argument_for_the_entity_or_for_what_agents_may_not_touch(memory: AgentMemory) -> None:
    arguments = {name for tool in named(memory).values() for name in properties(tool)}
    assert arguments == {
        "name", "weight_kg", "steps", "goals", "tags", "best", "fields", "kind", "km", "note",
        "item_id", "limit", "older_than", "text", "where",
    }  # fmt: skip


def test_an_item_that_only_the_application_can_make_has_no_tool_to_add_it(memory: AgentMemory) -> None:
    class Payment(BaseModel):
        amount: Annotated[float, Agent(read_only=True)]

    assert list(named(memory, documents=[], collections=[Payment])) == [
        "list_payments", "search_payments", "forget_payment",
    ]  # fmt: skip


def test_a_selection_of_tools_can_be_kept(memory: AgentMemory) -> None:
    assert list(named(memory, only=["read_athlete"])) == ["read_athlete"]
    with pytest.raises(
        InvalidRequestError, match=r"no tool named read_everything; there are read_athlete, update_athlete, "
    ):
        named(memory, only=["read_everything"])
    with pytest.raises(InvalidRequestError, match="a list of names"):
        named(memory, only="read_athlete")


def test_two_tools_of_one_name_are_refused(memory: AgentMemory) -> None:
    with pytest.raises(InvalidRequestError, match="the name of two"):
        named(memory, documents=[Athlete], collections={"athlete": Session})


def test_models_whose_hidden_fields_could_show_are_refused(memory: AgentMemory) -> None:
    @dataclass
    class Address:
        street: Annotated[str, Agent(hidden=True)]

    class Person(BaseModel):
        address: Address

    with pytest.raises(InvalidRequestError, match="Address is none"):
        named(memory, documents=[Person])


Shown = TypeVar("Shown")
Hurt = TypeVar("Hurt", bound=Injury)
Perhaps = TypeAliasType("Perhaps", Shown | None, type_params=(Shown,))


class Pair(NamedTuple):
    left: Annotated[str, Agent(hidden=True)] = ""


@dataclass
class Labelled(Generic[Shown]):
    label: Shown
    note: Annotated[str, Agent(hidden=True)] = ""


def test_hidden_fields_of_named_tuples_and_generic_records_are_refused(memory: AgentMemory) -> None:
    class Tuple(BaseModel):
        pair: Pair = Pair()

    class Record(BaseModel):
        record: Labelled[int] | None = None

    for model, name in ((Tuple, "Pair"), (Record, "Labelled")):
        with pytest.raises(InvalidRequestError, match=f"{name} is none"):
            named(memory, documents=[model])


class Code(RootModel[Annotated[str, Agent(hidden=True)]]):
    pass


@dataclass
class Stay:
    injury: Injury
    wards: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Code, Code("torn")),
        (dict[str, Code], {"knee": Code("torn")}),
        (deque[Injury], deque([Injury(part="knee", diagnosis="torn")])),
        (Stay, Stay(Injury(part="knee", diagnosis="torn"))),
        (list[Stay], [Stay(Injury(part="knee", diagnosis="torn"))]),
        (Perhaps[Annotated[str, Agent(hidden=True)]], "torn"),
        (Perhaps[Injury], Injury(part="knee", diagnosis="torn")),
        (Hurt, Injury(part="knee", diagnosis="torn")),
    ],
    ids=["root", "roots", "deque", "dataclass", "dataclasses", "alias", "alias of a model", "type variable"],
)
def test_hidden_fields_stay_hidden_in_whatever_holds_them(memory: AgentMemory, annotation: Any, value: Any) -> None:
    model = create_model("Chart", held=(annotation, ...))
    memory.entity("user", "bob").document(model).set(model(held=value))
    tools = named(memory, documents=[model], collections=[])
    assert set(tools) == {"read_chart"}, "what holds hidden fields is not written by agents"
    assert "torn" not in call(tools["read_chart"]).text


def test_sets_in_dataclasses_are_shown_in_one_order(memory: AgentMemory) -> None:
    class Chart(BaseModel):
        stay: Stay

    wards = frozenset(f"ward {n}" for n in range(9))
    memory.entity("user", "bob").document(Chart).set(Chart(stay=Stay(Injury(part="knee"), wards)))
    shown = call(named(memory, documents=[Chart], collections=[])["read_chart"]).text
    assert json.dumps(sorted(wards)) in shown


def test_what_is_no_model_with_fields_is_named(memory: AgentMemory) -> None:
    for kind, name in ((Code, "Code"), (Stay, "Stay"), (Injury(part="knee"), "an instance of Injury")):
        with pytest.raises(InvalidRequestError, match=f"and {name} is none"):
            named(memory, documents={"code": kind})


class Ward(TypedDict):
    patient: Annotated[Injury, PlainSerializer(str)]


@pydantic_dataclass
class Bed:
    patient: Injury

    @field_serializer("patient")
    def _shown(self, patient: Injury) -> str:
        return str(patient)


def test_records_that_are_written_out_by_code_of_their_own_hide_nothing(memory: AgentMemory) -> None:
    for record in (Ward, Bed):
        with pytest.raises(InvalidRequestError, match=f"{record.__name__} .*serializer of its own"):
            named(memory, documents=[create_model("Chart", held=(record, ...))])


def test_a_record_whose_annotations_cannot_be_read_is_refused(memory: AgentMemory) -> None:
    class Local(BaseModel):
        pass

    @dataclass
    class Holder:
        one: Local

    class Chart(BaseModel):
        holder: Holder

    with pytest.raises(InvalidRequestError, match="Holder names Local, which is not defined at the top"):
        named(memory, documents=[Chart])


def test_models_that_are_written_out_by_code_of_their_own_hide_nothing(memory: AgentMemory) -> None:
    class Plain(BaseModel):
        injuries: Annotated[list[Injury], PlainSerializer(str)] = []

    class Named(BaseModel):
        injuries: list[Injury] = []

        @field_serializer("injuries")
        def _shown(self, injuries: list[Injury]) -> str:
            return str(injuries)

    class All(BaseModel):
        injuries: list[Injury] = []

        @field_serializer("*")
        def _shown(self, injuries: Any) -> str:
            return str(injuries)

    class Whole(BaseModel):
        injuries: list[Injury] = []

        @model_serializer
        def _shown(self) -> dict[str, str]:
            return {"injuries": str(self.injuries)}

    for model in (Plain, Named, All, Whole):
        with pytest.raises(InvalidRequestError, match="serializer of its own"):
            named(memory, documents=[model])


def test_several_markers_of_a_field_add_up_to_the_strictest(memory: AgentMemory) -> None:
    class Part(BaseModel):
        serial: Annotated[str, Agent(read_only=True)] = ""

    class Marked(BaseModel):
        free: Annotated[str, Agent(priority=3)] = ""
        kept: Annotated[str, Agent(priority=3), Agent(read_only=True)] = "kept"
        secret: Annotated[str, Agent(priority=3), Agent(hidden=True)] = "secret"
        parts: Annotated[list[Part], Agent(priority=3)] = []

    tools = named(memory, documents=[Marked], collections=[])
    offered = str([properties(tool) for tool in tools.values()])
    assert "free" in offered
    assert not any(name in offered for name in ("kept", "secret", "parts"))
    memory.entity("user", "bob").document(Marked).set(Marked())
    assert call(tools["read_marked"]).text == 'marked: {"free": "", "kept": "kept", "parts": []}'


def test_a_field_whose_dicts_hold_hidden_fields_is_not_written_by_agents(memory: AgentMemory) -> None:
    class Visit(TypedDict):
        injury: Injury

    class Patient(BaseModel):
        last: Visit | None = None
        name: str = ""

    tools = named(memory, documents=[Patient], collections=[])
    assert set(properties(tools["update_patient"])) == {"name"}


class Patient(BaseModel):
    name: str = ""
    record: Record | None = None


class Record(BaseModel):
    risk: Annotated[float, Agent(hidden=True)] = 0.5


def test_a_model_may_name_a_class_that_is_defined_after_it(memory: AgentMemory) -> None:
    tools = named(memory, documents=[Patient], collections=[])
    assert set(properties(tools["update_patient"])) == {"name"}, "the record has a hidden field"


def test_fields_with_names_that_langchain_uses_work(memory: AgentMemory) -> None:
    class Setup(BaseModel):
        config: str = ""
        runtime: int = 0
        callbacks: list[str] = []
        title: str = ""

    tools = named(memory, documents=[Setup], collections=[])
    sent = {"config_": "a", "runtime_": 2, "callbacks_": ["c"], "title": "t"}
    assert call(tools["update_setup"], sent).status == "success"
    expected = Setup(config="a", runtime=2, callbacks=["c"], title="t")
    assert memory.entity("user", "bob").document(Setup).get() == expected


class Order(BaseModel):
    item_id: str = "article 1"
    config: str = ""
    config_: str = ""


def test_a_field_called_like_an_argument_of_the_tool_itself_names_no_other_item(memory: AgentMemory) -> None:
    orders = memory.entity("user", "bob").collection(Order)
    first, second = orders.add(Order()), orders.add(Order())
    update = named(memory, collections=[Order])["update_order"]
    sent = {"item_id": first, "item_id_": second, "config_": "b", "config__": "a"}
    assert call(update, sent).status == "success"
    assert orders.get(first) == Order(item_id=second, config="a", config_="b")
    assert orders.get(second) == Order()


def test_strict_nested_and_discriminated_models_are_taken_from_json(memory: AgentMemory) -> None:
    class Unit(Enum):
        METRIC = "metric"

    class Run(BaseModel):
        sort: Literal["run"]
        km: float

    class Swim(BaseModel):
        sort: Literal["swim"]
        laps: int

    class Plan(BaseModel):
        model_config = ConfigDict(strict=True)

        start: date | None = None
        unit: Unit = Unit.METRIC
        next: Run | Swim | None = Field(None, discriminator="sort")
        heart_rate: int = Field(0, alias="heartRate")
        pair: tuple[int, ...] = ()

    tools = named(memory, documents=[Plan], collections=[])
    sent = {"start": "2026-01-02", "unit": "metric", "next": {"sort": "swim", "laps": 4}, "heart_rate": 60}
    assert call(tools["update_plan"], sent).status == "success"
    assert call(tools["add_to_plan"], {"pair": [1, 2]}).status == "success"
    plan = memory.entity("user", "bob").document(Plan).get()
    assert plan is not None
    assert (plan.start, plan.next, plan.heart_rate) == (date(2026, 1, 2), Swim(sort="swim", laps=4), 60)
    assert plan.pair == (1, 2)


def test_a_validator_that_runs_before_gets_the_fields_as_they_are_stored(memory: AgentMemory) -> None:
    tools = named(memory, documents=[Measured], collections=[])
    document = memory.entity("user", "bob").document(Measured)
    document.set(Measured(weightKg=70))
    assert call(tools["update_measured"], {"note": "after lunch"}).status == "success"
    assert call(tools["add_to_measured"], {"weight": 1}).status == "success"
    assert document.get() == Measured(weightKg=71, note="after lunch")


def test_a_field_with_several_aliases_is_named_in_what_is_wrong_with_it(memory: AgentMemory) -> None:
    class Weighed(BaseModel):
        weight: float = Field(1, validation_alias=AliasChoices("kg", "w"), serialization_alias="kg", gt=0)

    tools = named(memory, documents=[Weighed], collections=[])
    memory.entity("user", "bob").document(Weighed).set(Weighed.model_validate({"kg": 70}))
    assert call(tools["add_to_weighed"], {"weight": -100}).content.count("weight: greater_than") == 1


def test_an_item_that_is_no_json_hides_no_other(memory: AgentMemory) -> None:
    class Run(BaseModel):
        km: float

    runs = memory.entity("user", "bob").collection(Run)
    runs.add(Run(km=5))
    runs.add(Run(km=8))
    memory.app_state.set(f"{runs.prefix}zzz", b"\xff")
    tools = named(memory, documents=[], collections=[Run])
    listed = call(tools["list_runs"]).content
    assert '"zzz": unreadable' in listed
    assert listed.count('"km"') == 2
    assert '"km": 8.0' in call(tools["search_runs"], {"text": "8"}).content
    assert '"km": 8.0' in render_memory(memory.entity("user", "bob"), collections=[Run])


def test_a_search_by_fields_compares_values(memory: AgentMemory) -> None:
    class Order(BaseModel):
        model_config = ConfigDict(str_to_lower=True)

        kind: str
        at: datetime
        price: Annotated[Decimal, PlainSerializer(float)]
        tax: Decimal

    tools = named(memory, documents=[], collections=[Order])
    at = datetime.fromisoformat("2026-01-01T12:00:00+02:00")
    memory.entity("user", "bob").collection(Order).add(
        Order(kind="RUN", at=at, price=Decimal("1.5"), tax=Decimal("1.50"))
    )
    for where in ({"kind": "RUN"}, {"at": "2026-01-01T10:00:00Z"}, {"price": "1.5"}, {"tax": "1.5"}):
        assert '"kind": "run"' in call(tools["search_orders"], {"where": where}).content, where
    for where in ({"kind": "swim"}, {"at": "2026-01-01T12:00:00Z"}, {"tax": "1.51"}):
        assert "no such" in call(tools["search_orders"], {"where": where}).content, where


# -- documents -------------------------------------------------------------------------------------------------------


def test_reading_shows_what_is_stored_without_hidden_fields(memory: AgentMemory) -> None:
    tools = named(memory)
    assert call(tools["read_athlete"]).content == "There is no athlete yet."
    injured = Athlete(injuries=[Injury(part="knee", diagnosis="torn")], tags={"b", "a"})
    memory.entity("user", "bob").document(Athlete).set(injured)
    text = call(tools["read_athlete"]).content
    assert '"injuries": [{"part": "knee"}]' in text
    assert '"tags": ["a", "b"]' in text
    assert '"coach": "Kim"' in text
    assert "risk" not in text
    assert "torn" not in text


def test_an_update_leaves_what_is_not_sent_and_null_clears(memory: AgentMemory) -> None:
    memory.entity("user", "bob").document(Athlete).set(Athlete(weight_kg=80, steps=7))
    tools = named(memory)
    answer = call(tools["update_athlete"], {"name": "Bea"})
    assert answer.content == 'Saved. athlete: {"name": "Bea"}'
    assert athlete(memory) == Athlete(name="Bea", weight_kg=80, steps=7)
    call(tools["update_athlete"], {"weight_kg": None})
    assert athlete(memory) == Athlete(name="Bea", steps=7)


def test_adding_and_removing(memory: AgentMemory) -> None:
    tools = named(memory)
    more = {"steps": 5, "weight_kg": 70, "goals": ["5k", "10k", "5k"], "tags": ["x"], "best": {"5k": 25.0, "10k": 60.0}}
    call(tools["add_to_athlete"], more)
    call(tools["add_to_athlete"], {"steps": -2, "weight_kg": -0.5, "goals": ["swim"], "tags": ["x", "y"]})
    call(tools["remove_from_athlete"], {"goals": ["5k"], "tags": ["x"], "best": ["10k"]})
    expected = Athlete(steps=3, weight_kg=69.5, goals=["10k", "swim"], tags={"y"}, best={"5k": 25.0})
    assert athlete(memory) == expected


def test_removing_what_is_not_there_changes_nothing(memory: AgentMemory) -> None:
    memory.entity("user", "bob").document(Athlete).set(Athlete(goals=["5k"], tags={"x"}))
    answer = call(named(memory)["remove_from_athlete"], {"goals": ["5k"], "tags": ["nope"]})
    assert answer.status == "error"
    assert 'tags: it does not contain "nope"' in answer.content
    assert athlete(memory) == Athlete(goals=["5k"], tags={"x"})


def test_forgetting_fields_sets_them_back(memory: AgentMemory) -> None:
    tools = named(memory)
    memory.entity("user", "bob").document(Athlete).set(Athlete(goals=["5k"], weight_kg=70, name="Bea", risk=0.5))
    call(tools["forget_athlete"], {"fields": ["goals", "weight_kg"]})
    assert athlete(memory) == Athlete(name="Bea", risk=0.5)


def test_forgetting_where_nothing_is_stored_succeeds_and_stores_nothing(memory: AgentMemory) -> None:
    answer = call(named(memory)["forget_athlete"], {"fields": ["goals"]})
    assert (answer.status, "nothing was stored" in answer.content) == ("success", True)
    assert list(memory.app_state.keys()) == []


def test_a_long_list_is_not_repeated_with_every_addition(memory: AgentMemory) -> None:
    goals = [f"run {n} km without a pause" for n in range(500)]
    memory.entity("user", "bob").document(Athlete).set(Athlete(goals=goals))
    answer = call(named(memory)["add_to_athlete"], {"goals": ["swim"], "steps": 5})
    assert answer.content == 'Saved. athlete: {"steps": 5, "goals": "(501 elements, not repeated here)"}'
    assert athlete(memory).goals == [*goals, "swim"]


def test_what_a_list_holds_already_is_not_added_again(memory: AgentMemory) -> None:
    add = named(memory)["add_to_athlete"]
    assert call(add, {"goals": ["5k", "10k", "5k"]}).content == (
        'Saved. athlete: {"goals": ["5k", "10k"]}\ngoals: already there, and not added again: ["5k"]'
    )
    assert "not added again" not in call(add, {"goals": ["swim"]}).content
    call(add, {"goals": ["10k", "swim"]})
    snapshot = memory.entity("user", "bob").document(Athlete).snapshot()
    assert snapshot is not None
    assert (snapshot.version, snapshot.value.goals) == (2, ["5k", "10k", "swim"])


def test_elements_are_named_as_they_were_sent(memory: AgentMemory) -> None:
    class Sport(Enum):
        RUN = "run"

    class Plan(BaseModel):
        sports: list[Sport] = []
        days: list[datetime] = []
        pairs: list[tuple[int, str]] = []

    tools = named(memory, documents=[Plan], collections=[])
    sent = {"sports": ["run"], "days": ["2026-04-18T07:30:00Z"], "pairs": [[1, "a"]]}
    refusal = call(tools["remove_from_plan"], sent).content
    for field, shown in {"sports": '"run"', "days": '"2026-04-18T07:30:00Z"', "pairs": '[1, "a"]'}.items():
        assert f"{field}: it does not contain {shown}" in refusal


def test_a_number_that_is_none_is_refused_by_name(memory: AgentMemory) -> None:
    answer = call(named(memory)["add_to_athlete"], {"best": {"5k": float("inf")}})
    assert (answer.status, "best.5k: finite_number" in answer.content) == ("error", True)


def test_a_document_that_needs_fields_is_made_by_the_update_that_sends_them(memory: AgentMemory) -> None:
    class Diet(BaseModel):
        kind: str
        calories: int

    update = named(memory, documents=[Diet], collections=[])["update_diet"]
    answer = call(update, {"kind": "vegan"})
    assert answer.status == "error"
    assert "calories: missing: there is nothing stored yet; send this field too" in answer.content
    assert call(update, {"kind": "vegan", "calories": 2000}).status == "success"
    assert call(update, {"calories": 1900}).status == "success"
    assert memory.entity("user", "bob").document(Diet).get() == Diet(kind="vegan", calories=1900)


@pytest.mark.parametrize("field", ["coach", "risk", "injuries", "user_id", "made_up"])
def test_an_update_cannot_touch_what_is_not_offered(memory: AgentMemory, field: str) -> None:
    injured = Athlete(injuries=[Injury(part="knee", diagnosis="torn")])
    memory.entity("user", "bob").document(Athlete).set(injured)
    for name in ("update_athlete", "add_to_athlete"):
        answer = call(named(memory)[name], {"steps": 1, field: "x"})
        assert answer.status == "error"
        assert f"{field}: extra_forbidden" in answer.content
    assert athlete(memory) == injured


class Clinic(BaseModel):
    class Address(BaseModel):
        street: str
        zip_code: str = Field("", alias="zip")

    class Sms(BaseModel):
        kind: Literal["sms"]
        number: str
        night: bool = False

    class Mail(BaseModel):
        kind: Literal["mail"]
        to: str

    address: Address | None = None
    branches: list[Address] = []
    ways: list[Annotated[Sms | Mail, Field(discriminator="kind")]] = []
    rooms: dict[str, Address] = {}


class Goal(BaseModel):
    text: str
    id: str = Field(default_factory=lambda: uuid.uuid4().hex)


class Planner(BaseModel):
    goals: list[Goal] = []


def test_a_wrong_name_is_refused_beside_a_default_that_is_another_one_each_time(memory: AgentMemory) -> None:
    tools = named(memory, documents=[Planner], collections=[])
    answer = call(tools["update_planner"], {"goals": [{"text": "run", "nope": 1}]})
    assert answer.status == "error"
    assert "goals.0.nope" in answer.content
    assert memory.app_state.get("user/bob/planner") is None


STREET = {"street": "Main", "zip_code": ""}  # by the name that agents are shown, equal to the default


class Flat(BaseModel):
    model_config = ConfigDict(extra="allow")  # beside a release that writes a field more
    street: str = ""


class Owner(BaseModel):
    flats: list[Flat] = []


@pytest.fixture
def owned(memory: AgentMemory) -> dict[str, BaseTool]:
    memory.app_state.set("user/bob/owner", {"flats": [{"street": "Main", "floor": 2}, {"street": "Side"}]})
    return named(memory, documents=[Owner], collections=[])


def test_an_element_is_removed_as_it_is_shown_though_a_newer_model_wrote_more(
    memory: AgentMemory, owned: dict[str, BaseTool]
) -> None:
    assert '{"street": "Main"}' in call(owned["read_owner"]).content
    call(owned["remove_from_owner"], {"flats": [{"street": "Main"}]})
    assert memory.app_state.get("user/bob/owner") == {"flats": [{"street": "Side"}]}


def test_an_element_is_not_added_again_though_a_newer_model_wrote_more(
    memory: AgentMemory, owned: dict[str, BaseTool]
) -> None:
    answer = call(owned["add_to_owner"], {"flats": [{"street": "Main"}]})
    assert 'already there, and not added again: [{"street": "Main"}]' in answer.content
    assert memory.app_state.get("user/bob/owner")["flats"][0] == {"street": "Main", "floor": 2}


def test_an_element_that_says_more_than_its_model_is_another_one(
    memory: AgentMemory, owned: dict[str, BaseTool]
) -> None:
    call(owned["add_to_owner"], {"flats": [{"street": "Main", "floor": 3}]})
    assert memory.app_state.get("user/bob/owner")["flats"][2] == {"street": "Main", "floor": 3}


@pytest.mark.parametrize(
    ("model", "stored"),
    [
        (Between, {"name": "old", "full_name": "Ada"}),
        (Camel, {"fullName": "Ada", "full_name": "other"}),
    ],
)
def test_a_field_is_changed_though_other_releases_wrote_it_under_another_key(
    memory: AgentMemory, model: type[BaseModel], stored: dict[str, Any]
) -> None:
    name = model.__name__.lower()
    memory.app_state.set(f"user/bob/{name}", stored)
    tool = named(memory, documents=[model], collections=[])[f"update_{name}"]
    document = memory.entity("user", "bob").document(model)

    call(tool, {"goals": ["5k"]})
    assert getattr(document.get(), "__dict__", None) == {"full_name": "Ada", "goals": ["5k"]}
    call(tool, {"full_name": "Ada L."})
    assert getattr(document.get(), "__dict__", None) == {"full_name": "Ada L.", "goals": ["5k"]}


@pytest.mark.parametrize(
    ("tool", "sent", "place"),
    [
        ("update_clinic", {"address": {**STREET, "city": "Bern"}}, "address.city"),
        ("update_clinic", {"branches": [STREET, {**STREET, "zpi": "3000"}]}, "branches.1.zpi"),
        ("add_to_clinic", {"branches": [{**STREET, "zpi": "3000"}]}, "branches.0.zpi"),
        ("add_to_clinic", {"rooms": {"a": {**STREET, "zpi": "3000"}}}, "rooms.a.zpi"),
        ("add_to_clinic", {"ways": [{"kind": "sms", "number": "1", "nigth": True}]}, "ways.0.nigth"),
        ("add_clinic", {"address": {**STREET, "city": "Bern"}}, "address.city"),
    ],
)
def test_a_name_that_is_wrong_inside_a_field_is_refused(
    memory: AgentMemory, tool: str, sent: dict[str, Any], place: str
) -> None:
    tools = named(memory, documents=[Clinic], collections=[])
    tools |= named(memory, documents=[], collections=[Clinic]) if tool == "add_clinic" else {}
    answer = call(tools[tool], sent)
    assert (answer.status, list(memory.app_state.keys())) == ("error", [])
    assert f"- {place}: extra_forbidden: Extra inputs are not permitted\n" in answer.content


def test_names_and_aliases_inside_a_field_are_accepted(memory: AgentMemory) -> None:
    tools = named(memory, documents=[Clinic], collections=[])
    sent = {"address": STREET, "branches": [{"street": "Side", "zip": "3000"}], "rooms": {"a": STREET}}
    assert call(tools["update_clinic"], sent).status == "success"


def test_a_name_inside_a_field_is_left_to_a_model_that_takes_others(memory: AgentMemory) -> None:
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")

    class Place(BaseModel):
        at: Open = Open()

    assert call(named(memory, documents=[Place])["update_place"], {"at": {"city": "Bern"}}).status == "success"


def test_a_refusal_names_place_kind_and_constraint(memory: AgentMemory) -> None:
    answer = call(named(memory)["update_athlete"], {"weight_kg": -3, "goals": ["a", 5], "steps": "many"})
    assert answer.status == "error"
    assert "weight_kg: greater_than: Input should be greater than 0 (you sent -3)" in answer.content
    assert "goals.1: string_type: Input should be a valid string (you sent 5)" in answer.content
    assert "steps: int_parsing" in answer.content
    assert athlete(memory) is None


def test_a_refusal_never_quotes_what_is_stored(memory: AgentMemory) -> None:
    memory.entity("user", "bob").document(Athlete).set(Athlete(risk=0.125))
    tools = named(memory)
    answer = call(tools["update_athlete"], {"weight_kg": 400})
    assert answer.status == "error"
    assert "(all together): value_error" in answer.content
    assert "0.125" not in answer.content
    assert "greater_than" in call(tools["add_to_athlete"], {"weight_kg": -1}).content


def test_the_validators_own_words_are_told_where_nothing_is_hidden(memory: AgentMemory) -> None:
    class Named(BaseModel):
        name: Annotated[str, Field(min_length=1)] = "x"
        nick: str = "y"

        def model_post_init(self, context: Any, /) -> None:
            if self.name == self.nick:
                raise ValueError("name and nick differ")

    answer = call(named(memory, documents=[Named], collections=[])["update_named"], {"name": "y"})
    assert "name and nick differ" in answer.content


def test_a_document_that_cannot_be_read_is_reported_and_left_alone(memory: AgentMemory) -> None:
    memory.app_state.set("user/bob/athlete", {"weight_kg": "heavy", "risk": "secret words"})
    tools = named(memory)
    for answer in (call(tools["read_athlete"]), call(tools["update_athlete"], {"steps": 1})):
        assert "weight_kg: float_parsing" in answer.content
        assert "a field that is not shown: float_parsing" in answer.content
        assert "heavy" not in answer.content
        assert "secret" not in answer.content
    assert call(tools["update_athlete"], {"steps": 1}).status == "error"


def test_an_update_of_nothing_is_refused(memory: AgentMemory) -> None:
    assert "send at least one field" in call(named(memory)["update_athlete"]).content


# -- collections -----------------------------------------------------------------------------------------------------


def ids(memory: AgentMemory) -> list[str]:
    return [one.id for one in memory.entity("user", "bob").collection(Session).list()]


def test_adding_listing_changing_and_deleting_items(memory: AgentMemory) -> None:
    tools = named(memory)
    for km in range(3):
        assert call(tools["add_session"], {"kind": "run", "km": km}).status == "success"
    first, second, third = ids(memory)
    assert call(tools["list_sessions"], {"limit": 2}).content.splitlines() == [
        "sessions, newest first, by item_id:",
        f'"{third}": {{"kind": "run", "km": 2.0, "note": null}}',
        f'"{second}": {{"kind": "run", "km": 1.0, "note": null}}',
        f'(for more, send older_than "{second}")',
    ]
    assert first in call(tools["list_sessions"], {"older_than": second}).content
    call(tools["update_session"], {"item_id": first, "note": "easy"})
    call(tools["forget_session"], {"item_id": second})
    sessions = memory.entity("user", "bob").collection(Session).list()
    assert [one.value for one in sessions] == [Session(kind="run", note="easy"), Session(kind="run", km=2)]


def test_an_item_that_is_not_there_is_refused(memory: AgentMemory) -> None:
    tools = named(memory)
    memory.entity("user", "eve").collection(Session).add(Session(kind="walk"), id="hers")
    for name, more in (("update_session", {"km": 1}), ("forget_session", {})):
        for id in ("hers", "../eve/session/hers", "eve/session/hers"):
            answer = call(tools[name], {"item_id": id, **more})
            assert answer.status == "error"
            assert "there is no session with this item_id" in answer.content
    assert call(tools["forget_session"], {"item_id": ""}).status == "error"
    assert memory.entity("user", "eve").collection(Session).get("hers") == Session(kind="walk")


@pytest.mark.parametrize("id", ["", "a\0b", "x" * 3_000])
def test_an_id_that_no_item_can_have_is_refused_as_such(memory: AgentMemory, id: str) -> None:
    tools = named(memory)
    for name, sent in {
        "update_session": {"item_id": id, "kind": "run"}, "forget_session": {"item_id": id},
        "list_sessions": {"older_than": id}, "search_sessions": {"older_than": id, "text": "x"},
    }.items():  # fmt: skip
        answer = call(tools[name], sent)
        assert (answer.status, answer.content) == (
            "error", f"{name}: no session can have this item_id. Nothing was changed."
        )  # fmt: skip


def test_a_refusal_names_the_tool_that_was_called(memory: AgentMemory) -> None:
    for name, tool in named(memory).items():
        assert call(tool, {"unknown": 1}).content.startswith(f"{name} was refused")


def test_searching_by_text_and_by_field(memory: AgentMemory) -> None:
    sessions = memory.entity("user", "bob").collection(Session)
    for kind, note in (("run", "Along the river"), ("swim", "cold"), ("run", None)):
        sessions.add(Session(kind=kind, note=note, invoice="river"))
    search = named(memory)["search_sessions"]
    assert call(search, {"text": "RIVER"}).content.count("\n") == 1
    assert call(search, {"text": "river run along"}).content.count("\n") == 1
    assert call(search, {"text": "river swim"}).content == "There are no such sessions."
    assert call(search, {"where": {"kind": "run"}}).content.count("\n") == 2
    assert call(search, {"where": {"kind": "run"}, "text": "river"}).content.count("\n") == 1
    newest = sessions.list(reverse=True)[0].id
    shown = call(search, {"where": {"kind": "run"}, "limit": 1}).content
    assert shown.endswith(f'(for more, send older_than "{newest}")')
    older = call(search, {"where": {"kind": "run"}, "older_than": newest}).content
    assert newest not in older
    assert older.count("\n") == 1
    assert (
        call(search, {"where": {"kind": "swim"}, "older_than": ids(memory)[1]}).content == "There are no such sessions."
    )
    assert call(search, {"text": "nothing"}).content == "There are no such sessions."
    assert call(search, {}).status == "error"
    assert call(search, {"where": {"invoice": "unpaid"}}).status == "error"


def count_words(text: str) -> int:
    return len(text.split())


def test_a_search_that_looked_at_enough_says_where_it_stopped(
    memory: AgentMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "PAGE", 2)
    monkeypatch.setattr(searching, "SEARCHED", 4)
    sessions = memory.entity("user", "bob").collection(Session)
    wanted, *others = [sessions.add(Session(kind=kind)) for kind in ("swim", *["run"] * 5)]
    search = named(memory)["search_sessions"]
    lines = call(search, {"where": {"kind": "swim"}}).content.splitlines()
    assert lines == ["There are no such sessions so far.", f'(for more, send older_than "{others[-4]}")']
    assert wanted in call(search, {"where": {"kind": "swim"}, "older_than": others[-4]}).content
    # One more of the same kind than was asked for lies behind what was looked at.
    lines = call(search, {"where": {"kind": "run"}, "limit": 10}).content.splitlines()
    assert len(lines) == 6
    assert lines[-1] == f'(for more, send older_than "{others[-4]}")'


def test_items_that_do_not_fit_an_answer_come_with_the_next(memory: AgentMemory) -> None:
    sessions = memory.entity("user", "bob").collection(Session)
    stored = [sessions.add(Session(kind="run", km=number, note="n " * 300)) for number in range(7)]
    for tools in (named(memory, answer_budget=600), named(memory, answer_budget=1_000, count_tokens=count_words)):
        for name, asked in (("list_sessions", {"limit": 50}), ("search_sessions", {"text": "run", "limit": 50})):
            seen: list[str] = []
            while True:
                more = {"older_than": seen[-1]} if seen else {}
                head, *lines = call(tools[name], {**asked, **more}).content.splitlines()
                assert head == "sessions, newest first, by item_id:"
                rest = lines.pop() if lines[-1].startswith("(for more") else None
                assert 0 < len(lines) < 5
                seen += [line.split('"')[1] for line in lines]
                if rest is None:
                    break
                assert rest == f'(for more, send older_than "{seen[-1]}")'
            assert seen == stored[::-1]


@pytest.mark.parametrize("budget", [60, 200, 1_000])
def test_an_answer_has_no_more_tokens_than_it_may(memory: AgentMemory, budget: int) -> None:
    sessions = memory.entity("user", "bob").collection(Session)
    for number in range(20):
        sessions.add(Session(kind="run", note="x" * 37 * number))
    answer = call(named(memory, answer_budget=budget)["list_sessions"], {"limit": 50}).content
    values = answer.rpartition("\n(for more")[0] or answer
    assert len(values.replace(" (too long to show: note)", "")) <= 4 * budget


class Diary(BaseModel):
    title: str = ""
    essay: str = ""
    motto: Annotated[str, Agent(priority=5)] = ""
    year: int = 0


def test_of_a_value_that_is_too_long_whole_fields_are_left_out_and_named(memory: AgentMemory) -> None:
    bob = memory.entity("user", "bob")
    diary = Diary(title="t" * 80, essay="e" * 10_000, motto="m" * 200, year=7)
    bob.document(Diary).set(diary)
    id = bob.collection(Diary, name="page").add(diary)
    models = {"documents": [Diary], "collections": {"page": Diary}}
    tools = named(memory, **models, answer_budget=77)
    shown = f'{{"motto": "{diary.motto}", "year": 7}} (too long to show: title, essay)'
    assert call(tools["read_diary"]).content == f"diary: {shown}"
    assert call(tools["list_pages"]).content.splitlines() == ["pages, newest first, by item_id:", f'"{id}": {shown}']
    everything = call(named(memory, **models)["read_diary"]).content
    assert everything == f"diary: {safe_fields(diary.model_dump())}"
    assert call(named(memory, **models, answer_budget=1)["read_diary"]).content == (
        "diary: {} (too long to show: title, essay, motto, year)"
    )


def test_a_budget_of_nothing_is_refused(memory: AgentMemory) -> None:
    with pytest.raises(InvalidRequestError, match="answer_budget"):
        named(memory, answer_budget=0)


class Ride(BaseModel):
    when: Annotated[datetime, Agent(orders=True)]
    km: float = 0


class Visit(BaseModel):
    day: Annotated[date | None, Agent(orders=True)] = None
    place: str


def told(memory: AgentMemory, field: str) -> list[str]:
    """List the items as an agent sees them, newest first."""
    many = "rides" if field == "km" else "visits"
    tools = named(memory, documents=[], collections=[Ride, Visit])
    return re.findall(rf'"{field}": "?([\w.]+)', call(tools[f"list_{many}"]).content)


def test_items_stand_by_the_time_that_orders_them_whenever_they_are_told(memory: AgentMemory) -> None:
    add = named(memory, documents=[], collections=[Ride])["add_ride"]
    rides = memory.entity("user", "bob").collection(Ride)
    imported = Ride(when=datetime(2026, 4, 18, 6, 12, tzinfo=UTC), km=2)
    rides.add(imported, id=item_id(imported.when, "strava-1"))
    for when, km in [
        ("2026-04-18T09:00:00Z", 4), ("2026-04-17T23:00:00+02:00", 1), ("2026-04-18T08:00:00", 3), ("2026-04-19", 5),
        ("2026-04-18T09:30:00+02:00", 2.5),
        ("2026-04-19", 6),
    ]:  # fmt: skip
        assert call(add, {"when": when, "km": km}).status == "success"
    assert told(memory, "km") == ["6.0", "5.0", "4.0", "3.0", "2.5", "2.0", "1.0"]


def test_items_may_be_ordered_by_a_day_and_those_without_one_stand_where_they_were_told(memory: AgentMemory) -> None:
    add = named(memory, documents=[], collections=[Visit])["add_visit"]
    for day, place in [("2026-04-18", "b"), (None, "now"), ("2026-04-17", "a"), ("2026-04-18", "c")]:
        assert call(add, {"day": day, "place": place}).status == "success"
    assert told(memory, "place") == ["now", "c", "b", "a"]


def test_the_time_that_orders_an_item_stays(memory: AgentMemory) -> None:
    tools = named(memory, documents=[], collections=[Ride])
    assert set(properties(tools["update_ride"])) == {"item_id", "km"}
    assert "To change when, forget the ride" in tools["update_ride"].description


def test_a_time_before_1970_is_refused(memory: AgentMemory) -> None:
    answer = call(named(memory, documents=[], collections=[Ride])["add_ride"], {"when": "1969-07-20"})
    assert (answer.status, "before 1970" in answer.content) == ("error", True)


def test_only_one_visible_time_can_order_items(memory: AgentMemory) -> None:
    class Two(BaseModel):
        first: Annotated[datetime, Agent(orders=True)]
        second: Annotated[datetime, Agent(orders=True)]

    class Text(BaseModel):
        when: Annotated[str, Agent(orders=True)]

    class Hidden(BaseModel):
        when: Annotated[datetime, Agent(orders=True, hidden=True)]

    for model in (Two, Text, Hidden):
        with pytest.raises(InvalidRequestError, match="can order the items"):
            named(memory, collections=[model])
        assert named(memory, documents=[model], collections=[])


def test_one_bad_item_does_not_hide_the_others(memory: AgentMemory) -> None:
    sessions = memory.entity("user", "bob").collection(Session)
    sessions.add(Session(kind="run"), id="1")
    memory.app_state.set("user/bob/session/2", {"km": "far"})
    sessions.add(Session(kind="swim"), id="3")
    lines = call(named(memory)["list_sessions"]).content.splitlines()
    assert lines[1].startswith('"3": {"kind": "swim"')
    assert lines[2] == '"2": unreadable: kind: missing, km: float_parsing'
    assert lines[3].startswith('"1": {"kind": "run"')


# -- whose memory ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", [None, "", "  ", True, ["bob"], 1.5])
def test_a_run_without_an_entity_is_refused(memory: AgentMemory, id: Any) -> None:
    tools = named(memory)
    with pytest.raises(
        InvalidRequestError, match="the id of this run's user, 'user_id', is missing, blank or not text"
    ):
        call(tools["read_athlete"], config={"configurable": {"user_id": id}})
    with pytest.raises(InvalidRequestError, match="names no user"):
        call(tools["update_athlete"], {"steps": 1}, config={})
    assert list(memory.app_state.keys()) == []


def test_a_runtime_that_a_model_made_up_is_not_believed(memory: AgentMemory) -> None:
    forged = {"steps": 9, "runtime": {"context": {"user_id": "eve"}}, "config": {"configurable": {"user_id": "eve"}}}
    assert call(named(memory)["update_athlete"], forged).status == "success"
    assert athlete(memory) == Athlete(steps=9)
    assert athlete(memory, "eve") is None


NAMES = ("self", "args", "kwargs", "func", "coroutine", "tool_input", "input", "sent", "cls", "verbose", "callable")


@pytest.mark.parametrize("name", NAMES)
def test_an_argument_that_is_named_like_langchains_own_is_refused_as_any_other(memory: AgentMemory, name: str) -> None:
    answer = call(named(memory)["update_athlete"], {"steps": 1, name: "x"})
    assert answer.status == "error"
    assert f"{name}: extra_forbidden" in answer.content


@pytest.mark.asyncio
@pytest.mark.parametrize("name", NAMES)
async def test_so_it_is_in_async_runs(memory: AgentMemory, name: str) -> None:
    tool = named(memory)["update_athlete"]
    sent: Any = {"type": "tool_call", "name": tool.name, "args": {"steps": 1, name: "x"}, "id": "call-1"}
    config: Any = BOB
    assert (await tool.ainvoke(sent, config)).status == "error"


@pytest.mark.parametrize("entity", ["user", ("user",), ("user", ""), ("user", 5), None])
def test_an_entity_that_cannot_be_looked_up_is_refused_at_once(memory: AgentMemory, entity: Any) -> None:
    with pytest.raises(InvalidRequestError):
        memory_tools(memory, documents=[Athlete], entity=entity)


def test_a_function_may_name_the_entity(memory: AgentMemory) -> None:
    tools = named(memory, entity=lambda _: ("device", "d-1"))
    call(tools["update_athlete"], {"steps": 1})
    assert memory.entity("device", "d-1").document(Athlete).get() == Athlete(steps=1)
    with pytest.raises(InvalidRequestError):
        call(named(memory, entity=lambda _: "d-1")["read_athlete"])
    with pytest.raises(InvalidRequestError):
        call(named(memory, entity=lambda _: ("device", ""))["read_athlete"])


class Context(BaseModel):
    user_id: int


def test_the_tools_work_in_a_graph_of_ones_own(memory: AgentMemory) -> None:
    node = ToolNode(list(named(memory).values()))
    graph = StateGraph(MessagesState, context_schema=Context).add_node("tools", node).add_edge(START, "tools").compile()
    calls = [
        {"name": "add_to_athlete", "args": {"steps": 2}, "id": "1"},
        {"name": "add_to_athlete", "args": {"steps": 3}, "id": "2"},
        {"name": "update_athlete", "args": {"runtime": {"context": {"user_id": 9}}, "name": "Zoe"}, "id": "3"},
    ]
    output = graph.invoke({"messages": [AIMessage("", tool_calls=calls)]}, context=Context(user_id=7))  # type: ignore[call-overload]
    assert [message.status for message in output["messages"][1:]] == ["success"] * 3
    assert athlete(memory, "7") == Athlete(name="Zoe", steps=5)
    assert list(memory.entities("user")) == ["7"]


@pytest.mark.asyncio
async def test_the_tools_work_in_an_async_graph_and_with_the_async_face(memory: AgentMemory) -> None:
    tools = memory_tools(memory.aio, documents=[Athlete], entity=("user", "user_id"))
    graph = StateGraph(MessagesState).add_node("tools", ToolNode(tools)).add_edge(START, "tools").compile()
    calls = [{"name": "add_to_athlete", "args": {"goals": [str(n)]}, "id": str(n)} for n in range(5)]
    config: Any = BOB
    await graph.ainvoke({"messages": [AIMessage("", tool_calls=calls)]}, config)  # type: ignore[call-overload]
    found = await memory.aio.entity("user", "bob").document(Athlete).get()
    assert found is not None
    assert sorted(found.goals) == ["0", "1", "2", "3", "4"]


@pytest.mark.asyncio
@pytest.mark.parametrize("entity", [("user", "user_id"), lambda runtime: ("user", str(runtime.context.user_id))])
async def test_a_node_that_calls_a_tool_itself_serves_whom_its_run_serves(memory: AgentMemory, entity: Any) -> None:
    tools = named(memory, entity=entity)

    def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [call(tools["add_to_athlete"], {"steps": 1}, None)]}

    async def anode(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await tools["add_to_athlete"].ainvoke({"steps": 1})]}

    for one in (node, anode):
        graph = (
            StateGraph(MessagesState, context_schema=Context).add_node("node", one).add_edge(START, "node").compile()
        )
        config: Any = {"configurable": {"user_id": 8}}
        await graph.ainvoke({"messages": []}, config, context=Context(user_id=7))  # type: ignore[call-overload]
    assert athlete(memory, "7") == Athlete(steps=2)
    assert list(memory.entities("user")) == ["7"]


def test_a_config_that_a_call_brings_says_whom_it_serves(memory: AgentMemory) -> None:
    def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [call(named(memory)["add_to_athlete"], {"steps": 1}, BOB)]}

    graph = StateGraph(MessagesState, context_schema=Context).add_node("node", node).add_edge(START, "node").compile()
    graph.invoke({"messages": []}, context=Context(user_id=7))  # type: ignore[call-overload]
    assert list(memory.entities("user")) == ["bob"]


# -- writers at the same time, and who they were ---------------------------------------------------------------------


def test_nothing_is_lost_when_eight_threads_add(memory: AgentMemory) -> None:
    agents = [named(memory)["add_to_athlete"], named(memory)["add_to_athlete"]]
    start = threading.Barrier(8)

    def work(number: int) -> set[str]:
        start.wait()
        return {call(agents[number % 2], {"steps": 1}).status for _ in range(50)}

    with ThreadPoolExecutor(8) as pool:
        assert set().union(*pool.map(work, range(8))) == {"success"}
    assert athlete(memory) == Athlete(steps=400)


def test_a_write_says_who_made_it(memory: AgentMemory) -> None:
    config = {"configurable": {"user_id": "bob", "thread_id": "thread-1"}}
    call(named(memory, agent="coach")["update_athlete"], {"steps": 1}, config)
    snapshot = memory.entity("user", "bob").document(Athlete).snapshot()
    assert snapshot is not None
    assert snapshot.entry.provenance is not None
    assert snapshot.entry.provenance.items() >= {
        ("request_id", "thread-1"), ("thread_id", "thread-1"), ("agent", "coach"), ("source", "langchain"),
        ("tool", "update_athlete"),
    }  # fmt: skip


def test_a_request_that_is_open_keeps_its_id(memory: AgentMemory) -> None:
    config = {"configurable": {"user_id": "bob", "thread_id": "t" * 5_000}}
    with memory.request("request-1"):
        call(named(memory)["update_athlete"], {"steps": 1}, config)
        assert RequestContext.get().request_id == "request-1"
    with pytest.raises(NoRequestContextError):
        RequestContext.get()
    snapshot = memory.entity("user", "bob").document(Athlete).snapshot()
    assert snapshot is not None
    assert snapshot.entry.provenance is not None
    assert snapshot.entry.provenance["request_id"] == "request-1"


def test_a_write_keeps_the_labels_of_the_request_that_is_open(memory: AgentMemory) -> None:
    with memory.request("request-1", tenant="acme", agent="app", tool="the application's"):
        call(named(memory)["update_athlete"], {"steps": 1})
        first = memory.entity("user", "bob").document(Athlete).snapshot()
        call(named(memory, agent="coach")["update_athlete"], {"steps": 2})
        second = memory.entity("user", "bob").document(Athlete).snapshot()
    labels = [dict(one.entry.provenance or {}) for one in (first, second) if one is not None]
    assert [one["tenant"] for one in labels] == ["acme", "acme"]
    assert [one["tool"] for one in labels] == ["update_athlete", "update_athlete"]
    assert [one["agent"] for one in labels] == ["app", "coach"]


def test_a_store_that_does_not_answer_is_no_answer(memory: AgentMemory) -> None:
    tools = named(memory)
    memory.close()
    with pytest.raises(UnavailableError):
        call(tools["read_athlete"])
