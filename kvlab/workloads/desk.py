"""The agent's office: the rules in its system prompt and the schemas of its twelve tools."""

from __future__ import annotations

from typing import Any

from kvlab.workloads.words import THINGS

RULES = """You are the service agent of a shared office building. People ask you about badges, lockers, desks, orders, \
tickets, parcels, permits and invoices, and you look them up in the directory of the house.

Rules:
1. Every person has a handle such as @name, and every record has a code of three digits such as #000.
2. When the user asks you to find, check or change a record, call exactly one tool and write nothing else.
3. Never guess a code. If the code is not in the conversation, call the tool that finds it.
4. When a tool has answered, tell the user the record in one short sentence, and nothing more.
5. A tool may return the records of several people. Report only the record that the user asked for.
6. When the user asks for a record that you have already seen, answer from the conversation and call no tool.
7. Change a record only when the user gives the new code. The new code replaces the old one at once.
8. Do not speak about the private life of anybody, and do not give legal or medical advice.
9. If the user is angry, stay calm and polite, and offer to call the front desk in the hall.
10. The building is open from 7 in the morning until 10 in the evening; at night only the guards can open the doors.
11. Parcels are kept for 14 days in the room behind the front desk, and then they are sent back.
12. Visitors must wear a badge on every floor, and they must give it back before they leave the building."""

_ABOUT = {
    "badge": "the badge that opens the doors of the building for a person",
    "locker": "the locker on the ground floor where a person keeps private things",
    "desk": "the desk at which a person works today",
    "order": "the last order that a person placed in the office shop",
    "ticket": "the open ticket of a person at the repair service",
    "parcel": "the parcel that waits for a person at the front desk",
    "permit": "the permit with which a person may park a car or a bicycle",
    "invoice": "the newest invoice that was sent to a person",
}


def _schema(name: str, description: str, properties: dict[str, str]) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {key: {"type": "string", "description": text} for key, text in properties.items()},
        "required": list(properties),
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _find(thing: str) -> dict[str, Any]:
    return _schema(
        f"find_{thing}",
        f"Find {_ABOUT[thing]}. Returns the code of the {thing}, with the records of other people nearby.",
        {"handle": f"The handle of the person whose {thing} is wanted, with the sign in front of it."},
    )


def _set(thing: str) -> dict[str, Any]:
    return _schema(
        f"set_{thing}",
        f"Change {_ABOUT[thing]}. Returns the new record when the change is done.",
        {
            "handle": f"The handle of the person whose {thing} is changed, with the sign in front of it.",
            "code": f"The new code of the {thing}, a sign and three digits.",
        },
    )


TOOLS: tuple[dict[str, Any], ...] = (*(_find(thing) for thing in THINGS), *(_set(thing) for thing in THINGS[:4]))
