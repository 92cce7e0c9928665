/** An experiment from its creation to its decision by the client that hey-api generates. */
import { client } from "./generated/hey_api/client.gen";
import { getOneDecision, postExperiments, postKpis, postTakesEvents } from "./generated/hey_api/sdk.gen";
import { asked, told } from "./story.ts";

const { url, headers, key, metric, row } = asked("by-hey-api");
client.setConfig({ baseUrl: url, headers });
const plan = { key, name: "Generated", hypothesis: "It works", target_kpis: [metric] };

const created = await postExperiments({ body: plan });
const pushed = await postKpis({ path: { ref: key }, body: { rows: [row("control"), row("treatment")] } });
const shown = await getOneDecision({ path: { ref: key } });
const event = await postTakesEvents({
  body: {
    specversion: "1.0", id: "1", source: `/${key}`, type: "decisioning.metric.observed.v1",
    data: { experiment: key, ...row("control", 1) },
  },
});
const again = await postExperiments({ body: plan });

told({
  created: created.data?.status,
  pushed: pushed.data?.accepted,
  action: shown.data?.recommendation?.action,
  taken: event.data?.accepted,
  refused: again.error?.code,
});
