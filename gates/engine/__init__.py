"""How an experiment is judged: a theory of operation. Pure: no framework, no clock, no database; docs/gates.md is its contract.

**What goes in.** A policy (what a team wants proved), a plan (what is tried, its pauses, and people's answers) and the rows of
every series as columns. Instants are integers, microseconds since the epoch. `compiled` works out once all that policy and plan
fix. Rows are only ever read forward: how far, and what they sum up to there, is the `Progress` of a checkpoint.

**Slots, looks, facts.** Everything is judged as of a slot of the policy's grid; some slots are looks, at which goals and guards are
read. `extraction` finds at which slots rows say anything else than before, and says it as `SlotFacts`: which watermark made a
series fresh or stale, which observations put a threshold on its other side, what a compared metric sums up to at its common
instant. Slots without facts are skipped, because nothing can change at them. Facts are stored: evidence is made of them.

**Verdicts, rules, latches.** `machine` takes the facts of one slot after the other and moves the state of the experiment: facts
give each gate a verdict (`verdicts`, which reads arms by `measuring`); each judged variant is held against the ten rules
(`recommendations.RULES`), of which the first that matches says an action and a code. Rules 1 to 3 propose at once; what the others
say has to hold at `persist` looks in a row, each with newer rows: the streak. A proposal is latched: it stands until a person
answers it or something stronger takes its place, and is suspended while what it needs is missing or restated. An answer takes it
away and, if it was overruled, snoozes it. The experiment's own recommendation follows from its variants'.

**Arrays propose, the machine decides.** Over weeks of looks a verdict changes a handful of times. `screening` computes all looks of
a range by arrays, marks those at which anything may change or the last bit could matter, and takes the machine to these only.
Every number that is kept or decides comes from the scalar path. The machine knows nothing of it.

**The same bytes.** `fold` gives the same state, facts and evaluations whether it runs once over all rows or goes on from any
checkpoint, one slot at a time; rows that change behind a checkpoint send it back to an older one (`checkpoint`). `evidence` replays
facts through the machine to the same bytes; `revisions` keeps what earlier rules said for that. `narration` tells it to people.

Read on in this order: `plan`, `policy`, `facts`, `compiled`, `state`, `verdicts`, `recommendations`, `machine`, `fold`; then
`reader`, `extraction` and `screening`; `statistics` has the formulas.
"""
