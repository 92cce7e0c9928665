"""The ten rules once more, out of docs/gates.md section 5 alone: what gates say goes in, what is proposed comes out.

Nothing of the engine is imported and nothing but plain data is read, so that the two can only agree by both being right. Instants are
microseconds. A slot is {slot, look, final, srm, fresh: {metric: {variant: "fresh", "stale", "missing" or "overdue"}}, gates, doubted:
variants}; a gate {name, kind, metric, variant, verdict}, a goal, guard or target besides {why, at, arrived, lower, upper, delete_below,
effect, plausible_to, restated}, a threshold {scope, seen}.
"""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

DAY = 86_400_000_000
NO_SNOOZE = ("unsafe", "invalid", "harm")
Json = Mapping[str, Any]


class Oracle:
    """What is proposed of one experiment, slot after slot. policy: a whole body. plan: every field."""

    def __init__(self, policy: Json, plan: Json) -> None:
        self.policy, self.plan, arms = policy, plan, sorted(plan["variants"], key=lambda v: int(v["position"]))
        self.control = next((v["key"] for v in arms if v["control"]), None) if len(arms) > 1 else None
        self.subjects = [v["key"] for v in arms if v["key"] != self.control]
        self.dropped = {v["key"]: v["dropped_at"] or inf for v in arms}
        self.unheard = sorted(plan["answers"], key=lambda answer: int(answer["at"]))
        for answer in self.unheard:
            if answer["action"] == "accept" and answer["of"][0] == "delete" and answer["variant"]:
                self.dropped[answer["variant"]] = min(answer["at"], self.dropped[answer["variant"]])
        self.of = {variant: _new() for variant in self.subjects}

    def judge(self, slot: Json) -> dict[str, Json]:
        """By variant that still runs {rule, action, code, shown: (action, code, state), proposed, stable, alone}; by "" the experiment."""
        while self.unheard and self.unheard[0]["at"] <= slot["slot"]:
            self._hear(self.unheard.pop(0))
        arms = [variant for variant, at in self.dropped.items() if slot["slot"] < at]
        told = {v: self._stand(v, self.of[v], arms, slot) for v in self.subjects if v in arms}
        return {**told, "": _experiment(told, alone=len(self.subjects) == 1)}

    def _stand(self, variant: str, its: dict[str, Any], arms: Sequence[str], slot: Json) -> Json:
        mine = [g for g in slot["gates"] if g["variant"] == variant and g["kind"] in ("uplift", "guard", "target")]
        near = [w for w in slot["gates"] if w["kind"] == "threshold" and w["variant"] in arms]
        near = [w for w in near if w["variant"] == variant or w["scope"] == "experiment"]
        self._read(variant, its, mine, slot)
        rule, action, code, hold = self._rule(variant, its, mine, near, arms, slot)
        if slot["look"]:
            self._count(its, mine, rule, action, code, slot)
        if rule <= 3 or (slot["look"] and action != "hold" and its["streak"] >= self.policy["persist"]):
            self._propose(its, mine, near, rule, action, code, slot)
        latch, shown = its["latch"], ("hold", hold, "open")
        stable = its["calm_at"] if rule == 10 and its["calm"] >= self.policy["persist"] else None
        if latch:
            suspended = latch["restated"] or (latch["action"] == "scale" and rule in (4, 5))
            shown, stable = (latch["action"], latch["code"], "suspended" if suspended else "proposed"), latch["stable"]
        lead = latch or {"rule": rule, "slot": None, "lower": -inf}
        told = {"rule": rule, "action": action, "code": code, "shown": shown, "stable": stable, "lead": lead["rule"]}
        return {
            **told,
            "proposed": lead["slot"],
            "lower": lead["lower"],
            "alone": bool(latch) and lead["rule"] in (1, 3),
        }

    # Section 5, the table

    def _rule(
        self, variant: str, its: Json, mine: Sequence[Json], near: Sequence[Json], arms: Sequence[str], slot: Json
    ) -> tuple[int, str, str, str]:
        """(rule, action, code, what a hold is called meanwhile)."""
        own = (self.control or variant, variant)
        fresh = {(m, v): state for m, by in slot["fresh"].items() for v, state in by.items() if v in arms}
        dense = [g for g in slot["gates"] if g["kind"] == "density" and g["variant"] in (None, *arms)]
        over = slot["final"] or self._ran(self._horizon(slot)) >= self.policy["max_days"] * DAY
        if any(w["verdict"] == "fail" and fresh[w["metric"], w["variant"]] == "fresh" for w in near):
            return 1, "delete", "unsafe", "open"
        if slot["srm"] == "invalid" or "invalid" in [g["verdict"] for g in mine]:
            return 2, "review", "invalid", "open"
        failing = [g for g in mine if g["kind"] == "guard" and g["verdict"] == "fail"]
        failing = [g for g in failing if its["fails"][g["name"]] >= (1 if slot["final"] else 2)]
        if any(fresh[g["metric"], own[0]] == fresh[g["metric"], own[1]] == "fresh" for g in failing):
            return 3, "delete", "harm", "open"
        watched = [g for g in slot["gates"] if g["kind"] == "threshold" and g["variant"] in own]
        empty = "no_data" in [g["verdict"] for g in (*mine, *near, *watched, *(d for d in dense if d["variant"]))]
        empty = empty or any(state in ("missing", "overdue") and v in own for (_, v), state in fresh.items())
        if empty or {"stale", "overdue"} & set(fresh.values()):
            lacks = "no_data" if empty else "stale"
            return (4, "review", "undecided", lacks) if over else (4, "hold", lacks, lacks)
        if variant in slot["doubted"]:
            return (5, "review", "undecided", "doubtful") if over else (5, "hold", "doubtful", "doubtful")
        if any(g["why"] for g in mine) or {d["verdict"] for d in dense} - {"pass"}:
            return (5, "review", "undecided", "collecting") if over else (5, "hold", "collecting", "collecting")
        others = {g["verdict"] for g in (*near, *(g for g in mine if g["kind"] == "guard"))} | set(fresh.values())
        decided = self._decided([g for g in mine if g["kind"] != "guard"], all_else=others <= {"pass", "fresh"})
        if decided:
            return (*decided, "open")
        return (9, "review", "undecided", "open") if over else (10, "hold", "open", "open")

    def _decided(self, goals: Sequence[Json], *, all_else: bool) -> tuple[int, str, str] | None:
        """Rules 6 to 8."""
        every = self.policy["require"] == "all" or self.control is None
        won = [g for g in goals if g["verdict"] == "pass"]
        lost = [g for g in goals if g["verdict"] == "fail"]
        if won and (won == goals or not every):
            small = [g["upper"] < g["delete_below"] for g in won if self.control]
            if small and (any(small) if every else all(small)):
                return 6, "review", "too_small"
            if all_else and any(g["lower"] is not None and g["lower"] > self._believed(g) for g in won if self.control):
                return 7, "review", "implausible"
            return (7, "scale", "wins" if self.control else "on_target") if all_else else None
        if lost and (lost == goals or every):
            if not self.control:
                return 8, "delete", "off_target"
            return 8, "delete", "harmful" if any(g["upper"] < 0 for g in lost) else "not_worth_it"
        return None

    def _believed(self, goal: Json) -> float:
        """The largest effect of a goal that is believed."""
        own, of_policy = goal["plausible_to"], self.policy["doubt_above"]
        if own is not None:
            return float(own)
        return float(of_policy) if of_policy is not None and goal["effect"] == "relative" else inf

    # Streak, latch, snooze

    def _read(self, variant: str, its: dict[str, Any], mine: Sequence[Json], slot: Json) -> None:
        """Restated rows begin all counts anew; a guard's failures are counted at looks that bring newer rows."""
        for g in mine:
            if g["restated"]:
                its["streak"] = its["calm"] = its["fails"][g["name"]] = 0
                if its["latch"] and its["latch"]["rule"] > 2:
                    its["latch"]["restated"] = True
            if slot["look"] and g["at"] != its["read"].get(g["name"]):
                fresh = {slot["fresh"][g["metric"]][v] for v in (self.control or variant, variant)} == {"fresh"}
                its["read"][g["name"]] = g["at"]
                its["fails"][g["name"]] = its["fails"].get(g["name"], 0) + 1 if fresh and g["verdict"] == "fail" else 0

    def _count(self, its: dict[str, Any], mine: Sequence[Json], rule: int, action: str, code: str, slot: Json) -> None:
        persist = self.policy["persist"]
        newer = bool(mine) and all(g["at"] is not None and g["at"] > its["counted"].get(g["name"], -inf) for g in mine)
        if action != its["held"]:
            its["held"], its["streak"] = action, 0
        if action != "hold" and its["streak"] < persist and (newer or code == "undecided" or slot["final"]):
            its["streak"] = persist if slot["final"] else its["streak"] + 1
            its["stable"] = self._horizon(slot)
        its["calm"] = its["calm"] if rule == 10 else 0
        if rule == 10 and newer and its["calm"] < persist:
            its["calm"], its["calm_at"] = its["calm"] + 1, self._horizon(slot)
        if newer:
            its["counted"] = {g["name"]: g["at"] for g in mine}

    def _propose(
        self,
        its: dict[str, Any],
        mine: Sequence[Json],
        near: Sequence[Json],
        rule: int,
        action: str,
        code: str,
        slot: Json,
    ) -> None:
        latch = its["latch"]
        if latch and rule <= 3 and latch["rule"] <= 3 and latch["action"] == action:
            latch["restated"] = latch["restated"] and latch["rule"] != rule
            return
        if latch and rule > 3:
            if latch["restated"] and latch["action"] == action:
                latch["restated"] = False
                return
            if not latch["restated"] and not (latch["code"] == "undecided" and action in ("scale", "delete")):
                return
        if any((action, code) == (a, c) and slot["slot"] < until for a, c, until in its["snoozed"]):
            return
        stable = its["stable"] if rule > 3 else self._horizon(slot)
        if rule == 1:
            stable = max(w["seen"] for w in near if w["verdict"] == "fail")
        lower = max([g["lower"] for g in mine if g["kind"] == "uplift" and g["lower"] is not None], default=-inf)
        its["latch"] = {
            "rule": rule,
            "action": action,
            "code": code,
            "slot": slot["slot"],
            "stable": stable,
            "lower": lower,
            "restated": False,
        }

    def _hear(self, answer: Json) -> None:
        for variant, its in self.of.items():
            if answer["variant"] not in (None, variant):
                continue
            latch, answered = its["latch"], [tuple(answer["of"])]
            same = latch and latch["action"] == answer["of"][0]
            if same and (answer["variant"] is None or latch["code"] == answer["of"][1]):
                answered.append((latch["action"], latch["code"]))
                its["latch"] = None
            for action, code in answered:
                acknowledged = answer["action"] == "accept" and action == "review"
                if acknowledged or (answer["action"] == "override" and code not in NO_SNOOZE):
                    its["snoozed"].append((action, code, answer["at"] + self.policy["snooze_days"] * DAY))

    # Time

    def _horizon(self, slot: Json) -> int:
        closed: int = slot["slot"] - self.policy["closed_after_s"] * 1_000_000
        return closed if self.plan["ended_at"] is None else min(closed, self.plan["ended_at"])

    def _ran(self, at: int) -> float:
        began: int = self.plan["started_at"]
        rested = (min(at, inf if end is None else end) - max(begin, began) for begin, end in self.plan["pauses"])
        return at - began - sum(float(max(0, each)) for each in rested)


def _new() -> dict[str, Any]:
    counts: dict[str, Any] = {"held": "hold", "streak": 0, "calm": 0, "counted": {}, "read": {}, "fails": {}}
    return {**counts, "stable": None, "calm_at": None, "latch": None, "snoozed": []}


def _experiment(told: Mapping[str, Json], *, alone: bool) -> Json:
    """{shown: (action, code, state), variant}."""
    by = {
        action: [v for v in told if told[v]["shown"][0] == action] for action in ("scale", "delete", "review", "hold")
    }
    only = next(iter(told), None) if alone else None
    if by["scale"]:
        first = min(by["scale"], key=lambda v: (told[v]["proposed"], -told[v]["lower"]))
        return {"shown": told[first]["shown"], "variant": first}
    if told and len(by["delete"]) == len(told):
        lead = min(told.values(), key=lambda t: int(t["lead"]))
        suspended = any(t["shown"][2] == "suspended" for t in told.values())
        return {"shown": ("delete", lead["shown"][1], "suspended" if suspended else "proposed"), "variant": only}
    if by["review"]:
        lead = min((told[v] for v in by["review"]), key=lambda t: (t["lead"], t["proposed"]))
        return {"shown": lead["shown"], "variant": only}
    holds = sorted((told[v] for v in by["hold"]), key=lambda t: int(t["rule"]))
    return {"shown": holds[0]["shown"] if holds else ("hold", "open", "open"), "variant": None}
