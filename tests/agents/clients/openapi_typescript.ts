/** An experiment from its creation to its decision by the types of openapi-typescript, called by openapi-fetch. */
import createClient from "openapi-fetch";
import type { paths } from "./generated/openapi_typescript.ts";
import { asked, told } from "./story.ts";

const { url, headers, key, metric, row } = asked("by-openapi-typescript");
const portal = createClient<paths>({ baseUrl: url, headers });
const at = { params: { path: { ref: key } } };
const plan = { key, name: "Generated", hypothesis: "It works", target_kpis: [metric] };

const created = await portal.POST("/api/experiments", { body: plan });
const pushed = await portal.POST("/api/experiments/{ref}/kpis", { ...at, body: { rows: [row("control"), row("treatment")] } });
const shown = await portal.GET("/api/experiments/{ref}/decision", at);
const event = await portal.POST("/api/events", {
  headers: { "Content-Type": "application/cloudevents+json" },
  body: {
    specversion: "1.0", id: "1", source: `/${key}`, type: "decisioning.metric.observed.v1",
    data: { experiment: key, ...row("control", 1) },
  },
});
const again = await portal.POST("/api/experiments", { body: plan });

told({
  created: created.data?.status,
  pushed: pushed.data?.accepted,
  action: shown.data?.recommendation?.action,
  taken: event.data?.accepted,
  refused: again.error?.code,
});
