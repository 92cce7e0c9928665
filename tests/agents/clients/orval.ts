/** An experiment from its creation to its decision by the functions that orval generates for fetch. */
import { getOneDecision, postExperiments, postKpis, postTakesEvents } from "./generated/orval.ts";
import { asked, told } from "./story.ts";

const { headers, key, metric, row } = asked("by-orval");
const plan = { key, name: "Generated", hypothesis: "It works", target_kpis: [metric] };

const created = await postExperiments(plan, { headers });
const pushed = await postKpis(key, { rows: [row("control"), row("treatment")] }, undefined, { headers });
const shown = await getOneDecision(key, undefined, { headers });
const event = await postTakesEvents(
  {
    specversion: "1.0", id: "1", source: `/${key}`, type: "decisioning.metric.observed.v1",
    data: { experiment: key, ...row("control", 1) },
  },
  undefined,
  { headers: { ...headers, "Content-Type": "application/cloudevents+json" } },
);
const again = await postExperiments(plan, { headers });

told({
  created: created.status === 201 ? created.data.status : created.data,
  pushed: pushed.status === 200 ? pushed.data.accepted : pushed.data,
  action: shown.status === 200 ? shown.data.recommendation?.action : shown.data,
  taken: event.status === 200 ? event.data.accepted : event.data,
  refused: again.status === 409 ? again.data.code : again.data,
});
